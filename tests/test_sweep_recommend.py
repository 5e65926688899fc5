"""Recommendations from a sweep, and those that are shipped."""

import pytest

from ralu_cache import accelerate
from ralu_cache.recommended import for_speedup, shipped
from ralu_cache.sweep.recommend import best_at, fastest, save, usage
from ralu_cache.sweep.summary import summarise
from ralu_cache.temporal import resolve_temporal
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


def test_shipped_entries_are_valid_and_the_slowest_that_suffices_is_taken():
    entries = shipped("flux")
    for entry in entries:
        resolve_temporal(entry.temporal)
    assert for_speedup(entries, "2x", "flux") is entries[0]
    assert for_speedup(entries, entries[-1].speedup, "flux") is entries[-1]
    for bad in ("99x", "fast", True, float("nan"), 0):
        with pytest.raises(ValueError, match="speedup"):
            for_speedup(entries, bad, "flux")


def test_a_speedup_excludes_naming_the_methods():
    with pytest.raises(ValueError, match=r"spatial='ralu-4x'"):
        accelerate(object(), spatial="ralu-4x", speedup="4x")
