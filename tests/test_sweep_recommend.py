"""Recommendations from a sweep, and those that are shipped."""

import json
from dataclasses import replace

import pytest

from ralu_cache import accelerate
from ralu_cache.sweep.recommend import ALL, AVAILABLE, Entry, best_at, fastest, save, usage
from ralu_cache.sweep.summary import summarise
from tests.sweep_results import distance, fabricated

SUMMARY = summarise(fabricated(), {"distance": distance})


def test_the_fastest_that_keeps_a_quality_and_the_nearest():
    row, _ = fastest(SUMMARY, {"psnr": 40})
    assert row is not None and row.setting.method == "+taylorseer:3"
    assert usage(row.setting).startswith('accelerate(pipe, temporal="taylorseer:3")')
    row, nearest = fastest(SUMMARY, {"psnr": 90})
    assert row is None and nearest is not None and nearest.family == "full"


def test_the_best_at_a_speed(tmp_path):
    row, _ = best_at(SUMMARY, 5.8, "psnr")
    assert row is not None and row.setting.method == "ralu-4x+seacache:0.4"
    plain, _ = best_at(SUMMARY, 4, "attributes")
    assert plain is not None and usage(plain.setting).startswith("pipe(prompt, num_inference_steps=12,")
    assert best_at(SUMMARY, 99, "psnr")[0] is None
    with pytest.raises(ValueError, match="speed"):
        best_at(SUMMARY, 2, "speed")
    path = tmp_path / "flux.json"
    save(path, row, "here")
    save(path, row, "there")
    assert path.read_text().count("speedup") == 1 and "there" in path.read_text()


def test_guidance_is_recommended_and_saved_with_the_rest(tmp_path):
    results = fabricated(failing=None)
    fast = replace(results.records[0].setting, method="ralu-4x+guidance=early")
    records = [replace(record, setting=fast) if record.setting.method == "ralu-7x" else record
               for record in results.records]  # fmt: skip
    row, _ = best_at(summarise(replace(results, records=records), {"distance": distance}), 7.35, "psnr", ("combined",))
    assert row is not None and row.setting.method.startswith("ralu-4x+taylorseer")
    row = next(row for row in summarise(replace(results, records=records)).rows if row.setting == fast)
    assert row.family == "combined"
    assert usage(fast).startswith('accelerate(pipe, spatial="ralu-4x", guidance="early")\n')
    path = tmp_path / "flux.json"
    path.write_text('[{"speedup": 2.0, "spatial": "ralu-4x", "temporal": null, "measured": "before", "steps": 50}]')
    save(path, row, "here")
    save(path, row, "there")
    old, new = (Entry(**entry) for entry in json.loads(path.read_text()))
    assert (old.guidance, new.guidance, new.measured) == (None, "early", "there"), "older entries are others"


def test_sizes_are_not_mixed():
    results = fabricated()
    larger = [replace(record, setting=replace(record.setting, height=192, width=256)) for record in results.records[8:]]
    summary = summarise(replace(results, records=[*results.records, *larger]), {"distance": distance})
    with pytest.raises(ValueError, match="choose one with --size: 128x128, 256x192"):
        summary.at_size(None)
    with pytest.raises(ValueError, match="nothing was measured at 192x256; measured: 128x128, 256x192"):
        summary.at_size((256, 192))
    assert {row.setting.width for row in summary.at_size((192, 256)).rows} == {256}
    assert SUMMARY.at_size(None) == SUMMARY.at_size((128, 128)) == SUMMARY


def test_the_best_of_all_may_be_a_peer():
    peer, _ = best_at(SUMMARY, 2.85, "psnr", ALL)
    ours, _ = best_at(SUMMARY, 2.85, "psnr")
    assert peer is not None and peer.setting.method == "MagCache:0.2"
    assert ours is not None and ours.family in AVAILABLE


def test_of_two_equally_good_settings_the_faster_is_taken():
    results = fabricated(failing=None)
    flat = [replace(record, metrics={"attributes": (100.0,) * 4, "psnr": record.metrics["psnr"]})
            for record in results.records]  # fmt: skip
    summary = summarise(replace(results, records=flat), {"distance": distance})
    row, _ = best_at(summary, 2, "attributes")
    assert row is not None and row.setting.method == "ralu-4x+taylorseer:5/2/2,first=1"


def test_a_speedup_excludes_naming_the_methods():
    with pytest.raises(ValueError, match=r"spatial='ralu-4x'"):
        accelerate(object(), spatial="ralu-4x", speedup="4x")
