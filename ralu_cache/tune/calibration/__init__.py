"""Calibration: TeaCache's polynomial fitted to any model, for each stage of a plan, from a few uncached runs.

    profile = calibrate(pipe, [{"prompt": "a red fox", "num_inference_steps": 28}], spatial="ralu")
    profile.save("teacache.json")
    accelerate(pipe, "ralu", TeaCache(threshold=0.2, coefficients="teacache.json"))

with `calibrate` from `ralu_cache.tune.calibration.fit`. Beside the model
(`ralu_cache.temporal.coefficients`) it is found by itself.
"""
