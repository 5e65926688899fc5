"""Arguments that count steps of the loop: refused by name where it makes fewer of them, unless they mean the same."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.guiders import AdaptiveProjectedMixGuidance
from torch import Tensor

from benchmarks.coverage.build import build, denoisers
from benchmarks.coverage.inputs import calls_of
from benchmarks.coverage.survey import draw
from ralu_cache import Forecast, accelerate
from ralu_cache.engine.counted import COUNTED, check_counted
from tests import surroundings
from tests.loops import Count, counts, pipelines

one_thread = surroundings.one_thread

STEPS = 6
SKIPPING = Forecast(3, ramp=False)


@cache
def pipeline(name: str) -> Any:
    return build(name)


def call(name: str, **given: Any) -> tuple[Tensor, int]:
    """What a tiny pipeline draws, and how often it calls its denoiser."""
    common = {"prompt": "a red fox", "height": 64, "width": 64, "num_inference_steps": STEPS, "output_type": "latent"}
    common |= {"num_frames": 9, "max_sequence_length": 16} if name.startswith("CogVideoX") else {}
    return draw(pipeline(name), common | calls_of(name) | {"generator": torch.Generator().manual_seed(0)} | given)


EDITED: dict[str, Any] = {"editing_prompt": ["a hat"]}
RECOMMENDED: dict[str, Any] = {"guidance_scale": None, "guidance_schedule": (7.0,) * (STEPS - 2) + (3.0,) * 2}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("StableDiffusionPipelineSafe", {"sld_warmup_steps": 3}, "sld_warmup_steps=3 counts steps.*; give 0, or compute"),
    ("StableDiffusionGLIGENPipeline", {"gligen_scheduled_sampling_beta": 0.3}, "gligen_scheduled_sampling_beta=0.3"),
    ("SemanticStableDiffusionPipeline", EDITED | {"edit_warmup_steps": 4}, "edit_warmup_steps=4 counts steps"),
    ("SemanticStableDiffusionPipeline", EDITED | {"edit_cooldown_steps": [5]}, r"edit_cooldown_steps=\[5\] counts"),
    ("Ideogram4Pipeline", RECOMMENDED, r"guidance_schedule=\(7.0, .* counts.*; give guidance_scale and guidance_sch"),
    ("CogVideoXPipeline", {"use_dynamic_cfg": True}, "use_dynamic_cfg=True counts steps.*; give False"),
]
SERVED: list[tuple[str, dict[str, Any]]] = [
    ("StableDiffusionPipelineSafe", {}),  # whose default, 10 steps, is more than there are
    ("StableDiffusionPipelineSafe", {"sld_warmup_steps": 3, "sld_guidance_scale": 0.5}),
    ("StableDiffusionGLIGENPipeline", {}),
    ("Ideogram4Pipeline", {}),
    ("SemanticStableDiffusionPipeline", {"edit_warmup_steps": 4}),  # with nothing to edit
    ("SemanticStableDiffusionPipeline", EDITED | {"edit_warmup_steps": [0], "edit_cooldown_steps": STEPS}),
]


@pytest.mark.parametrize(("name", "given", "told"), REFUSED, ids=lambda case: str(case)[:40])
def test_what_counts_steps_is_refused_where_some_are_forecast(name: str, given: dict[str, Any], told: str) -> None:
    with accelerate(pipeline(name), temporal=SKIPPING), pytest.raises(ValueError, match=told):
        call(name, **given)


def test_what_counts_steps_is_served_where_all_are_computed() -> None:
    name, given, _ = REFUSED[0]
    stock, calls = call(name, **given)
    with accelerate(pipeline(name), temporal="forecast:1"):
        picture, made = call(name, **given)
    assert torch.equal(picture, stock) and made == calls


@pytest.mark.parametrize(("name", "given"), SERVED, ids=lambda case: str(case)[:40])
def test_what_means_the_same_in_fewer_steps_is_served(name: str, given: dict[str, Any]) -> None:
    with accelerate(pipeline(name), temporal=SKIPPING):
        picture, made = call(name, **given)
    assert picture.isfinite().all() and made < STEPS * len(denoisers(pipeline(name)))


def test_free_init_lays_out_what_the_loop_makes() -> None:
    pipe = pipeline("AnimateDiffPipeline")
    pipe.enable_free_init(num_iters=2)
    told = r"enable_free_init\(\).*pipe.disable_free_init\(\)"
    with accelerate(pipe, temporal=SKIPPING), pytest.raises(ValueError, match=told):
        call("AnimateDiffPipeline", num_frames=2)
    pipe.disable_free_init()


def test_a_pipeline_that_steps_by_itself_is_told_so() -> None:
    """ParaDiGMS takes several levels at once, by a method of the scheduler's that is no step."""
    name = "StableDiffusionParadigmsPipeline"
    pipe = build(name, scheduler={"class": "DDIMParallelScheduler"})
    given = {"prompt": "a fox", "height": 64, "width": 64, "num_inference_steps": STEPS, "output_type": "latent"}
    told = f"{name} ended after 0 of {STEPS} steps: it leaves out steps of its schedule"
    with accelerate(pipe, temporal=SKIPPING), pytest.raises(RuntimeError, match=told):
        pipe(**given, parallel=3)


def test_each_of_several_guiders_counts_along_the_stock_schedule() -> None:
    """HunyuanImage has one of its own for prompts with words to write, whose projection begins at a step."""
    told: list[tuple[int, int]] = []

    class Told(AdaptiveProjectedMixGuidance):
        def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
            told.append((step, num_inference_steps))
            super().set_state(step, num_inference_steps, timestep)

    pipe = pipeline("HunyuanImagePipeline")
    pipe.ocr_guider = guider = Told(adaptive_projected_guidance_start_step=3)
    with accelerate(pipe, temporal=SKIPPING):
        assert call("HunyuanImagePipeline", prompt='a sign that says "fox"')[1] == 4
    assert told == [(0, STEPS), (3, STEPS)] and pipe.ocr_guider is guider and guider.momentum_buffer is None


MEANT: list[tuple[str, Any, dict[str, Any], bool]] = [  # with the other arguments: does it mean the same?
    ("control_guidance_start", [0.0, 0.0], {}, True), ("control_guidance_start", [0.0, 0.1], {}, False),
    ("skip_guidance_layers", [], {}, True), ("skip_guidance_layers", [1], {}, False),
    ("guidance_schedule", (7.0,) * 3 + (3.0,) * 3, {}, False), ("guidance_schedule", [3.0] * STEPS, {}, True),
    ("guidance_schedule", torch.tensor([7.0, 3.0]), {}, False), ("guidance_schedule", None, {}, True),
    ("cfg_trunc_ratio", 0.3, {"guidance_scale": 4.0}, False), ("cfg_trunc_ratio", 0.3, {"guidance_scale": 1.0}, True),
    ("edit_warmup_steps", [0, STEPS], EDITED, True), ("edit_warmup_steps", [0, 4], EDITED, False),
    ("max_iter_to_alter", 25, {}, False), ("max_iter_to_alter", 0, {}, True),
    ("thresholds", {0: 0.05, 10: 0.5}, {"max_iter_to_alter": 0}, False), ("thresholds", {0: 0.05}, {}, True),
    ("gligen_scheduled_sampling_beta", 0.3, {"gligen_images": []}, True),
    ("sem_guidance", [torch.ones(2)], {}, False), ("image_latents", torch.ones(2), {}, True),
    ("image_latents", torch.ones(2), {"inpaint_strength": 0.8}, False), ("enforce_inference_steps", True, {}, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "others", "same"), MEANT, ids=lambda case: str(case)[:30])
def test_what_each_may_be(name: str, value: Any, others: dict[str, Any], same: bool) -> None:
    assert COUNTED[name].allows(value, {name: value, **others}, STEPS) == same
    if not same:
        with pytest.raises(ValueError, match=f"{name}=.* counts steps"):
            check_counted(None, {name: value, **others}, STEPS)


# ---- the source of diffusers

SAID = {
    r"i == len\((self\.scheduler\.)?timesteps\) - 1": "when the progress bar moves",
    r"i \+ 1 > (num_warmup_steps|0)": "when the progress bar moves",
    r"\(i \+ 1\) % self\.scheduler\.order == 0": "when the progress bar moves",
    r"len\((self\.scheduler\.)?timesteps\) - num_inference_steps \* self\.scheduler\.order": "when the bar moves",
    r"\(len\(timesteps\) - num_warmup_steps\) // self\.scheduler\.order": "when the progress bar moves",
    r"(self\.progress_bar|tqdm|range)\(\.\.\. .*|i(ndex)? == (total_)?steps - 1": "how long the bar or the loop is",
    r"len\(sigmas\) \* len\(tiles\)": "how long the bar is",
    r"(i|step_idx) % callback_steps == 0|i // getattr\(self\.scheduler, 'order', 1\)": "when callbacks are called",
    r"callback(_on_step_end)?\(\.\.\. .*": "what callbacks are told",
    r"self\.(uncond|text)_estimates\[i\]|num_inference_steps \+ 1|i in attn_store_steps": "kept to be looked at",
    r"((self\.)?\w*(scheduler\.)?(retrieve|set|get)_(timesteps|sigmas)|get_original_sigmas)\(.*": "lays out all steps",
    r".*\b(init_timestep|t_start|denoise_strength|strength)\b.*": "`strength` cuts the stock schedule",
    r"num_inference_steps < 1": "raises for too few",
    r"num_inference_steps == 1": "the only step is computed",
    r"i (< len\((timesteps|step_matrix)\) - 1|> 0)|timesteps\[i [+-] 1\]": "levels shown before and after a step",
    r"(self\.|audio_)?scheduler\.(sigmas|timesteps)\[(i|index|step_idx)\]|audio_timesteps\[i\]": "the level of a step",
    r"_precomputed_t_norms\[i\]": "the level of a step",
    r"(condition_)?latents?_model_input(_list)?\[i\]": "of one sample of the batch",
    r"i == 0": "the first step is always computed",
    r"(self\.)?guider\.set_state\(.*": "counted along the stock schedule by the call's guider",
    r".*cache_context\(.*": "diffusers' own caches, which are refused beside forecasts",
    r"i [<>] num_inference_steps \* skip_layer_guidance_(start|stop)": "without skip_guidance_layers it has no effect",
    r"i == num_temporal_reasoning_steps": "without enable_temporal_reasoning it has no effect",
    r"np\.linspace\(\.\.\. len\(self\.scheduler\.timesteps\) \.\.\.\)": "where max_iter_to_alter is 0 too",
    r"self\._apply_free_init\(.*": "refused by name: pipe.free_init_enabled",
    r"apply_cosmos3_mixed_precision_step\(.*": "in 16 bits is what is so in stock, and more",
}
"""Expressions that count steps and change no picture, or mean the same in a loop of fewer: patterns, and why."""

UNSERVED = {
    r".*Combined.*|VisualClozePipeline": "runs pipelines of its own, and is refused",
    r"AnyFlow.*|Amused.*|HeliosPyramid.*|UnCLIP.*|Kandinsky(V22)?Prior.*|ScoreSdeVe.*": "its scheduler is refused",
    r"DiffusionGemma.*|LLaDA2.*|RFD4.*": "has a scheduler that is refused, or none of that name",
    r"LTXI2VLongMultiPrompt.*": "leaves out the last step, and is refused",
    r"StableDiffusionParadigms.*": "steps by itself, and is told so",
}
"""Pipelines whose loops never make fewer steps, and why."""


def told(name: str, written: dict[str, str]) -> list[Count]:
    """Where a pipeline's call counts steps, except for what is `SAID`."""
    return [*counts(name, written, re.compile("|".join(SAID)))]


def test_every_pipeline_of_diffusers_counts_steps_by_arguments_that_are_known() -> None:
    folder, unserved = Path(diffusers.__file__).parent / "pipelines", re.compile("|".join(UNSERVED))
    served = [(name, written) for name, written in pipelines(folder) if unserved.fullmatch(name) is None]
    assert len(served) > 250
    found = [count for name, written in served for count in told(name, written)]
    assert [count for count in found if count.arguments.isdisjoint(COUNTED)] == []
    of_use = COUNTED.keys() & {name for count in found for name in count.arguments}
    without = {"skip_guidance_layers", "enable_temporal_reasoning"}
    assert COUNTED.keys() - of_use == without, "without which those that count have no effect"


MADE_UP = """class MadeUpPipeline(DiffusionPipeline):
    def sharpened(self, latents, step, strengths):
        return latents * strengths[step]

    def __call__(
        self, prompt, num_inference_steps=50, warm=3, guidance_scale=4.0, late=0.5, weights=(), first=0, sharp=(), cut=0
    ):
        self._guidance_scale = guidance_scale
        begin = late
        kept = []
        timesteps, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps)
        for weight in weights:
            kept.append(weight * 2)
        last = begin * len(timesteps)
        timesteps = timesteps[cut:]
        for i, t in enumerate(timesteps):
            noise = self.unet(latents, t)
            if i >= warm and guidance_scale > 1:
                noise = noise * self.guidance_scale
            if i < int(last):
                noise = noise + kept[i]
            progress = i / num_inference_steps
            noise = noise if progress < first else noise * t
            latents = self.sharpened(self.scheduler.step(noise, t, latents), i, sharp)
            if i == len(timesteps) - 1 or (i + 1 > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                progress_bar.update()
        return [image[i] for i in range(len(prompt))]


def elsewhere():
    pass
"""


def test_what_a_made_up_pipeline_counts_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "pipeline_made_up.py").write_text(MADE_UP)
    [(name, written)] = pipelines(tmp_path)
    others = {"guidance_scale", "prompt", "num_inference_steps"}
    found = {count.text: count.arguments - others for count in told(name, written)}
    assert found == {
        "i >= warm": {"warm"}, "begin * len(timesteps)": {"late"}, "i < int(last)": {"late"},
        "kept[i]": {"weights", "late"}, "i / num_inference_steps": set(), "progress < first": {"first"},
        "strengths[step]": {"sharp"}, "timesteps[cut:]": {"cut"},
    }  # fmt: skip
