"""A study's result as a profile: the front, timed again in pairs with the full run, and the file it is added to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ralu_cache.profiles.facts import Facts, Model
from ralu_cache.profiles.profile import Front, Measure, Point, Profile, read_profile
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.sweep.comparison import describe_hardware
from ralu_cache.tune.bench import Bench
from ralu_cache.tune.front import Measured, chosen, told_front

__all__ = ["ROUNDS", "Profile", "existing", "front_of", "read_profile", "timed"]
ROUNDS = 3
"""In which the full run and every setting of the front are timed, in turns."""
LIBRARIES = ("ralu-cache", "torch", "diffusers")


def timed(bench: Bench, kept: Sequence[Measured], end: float) -> dict[int, float]:
    """By the number of its trial, how many times faster than the full run a setting samples: the median over rounds, of
    which none but the first begins after `end` (of `time.monotonic`)."""
    chunk, ratios = bench.chunks(1)[0], dict[int, list[float]]()
    for number in range(ROUNDS):
        if number and time.monotonic() >= end:
            break
        full = bench.full(chunk).seconds
        for trial in kept:
            ratios.setdefault(trial.number, []).append(full / bench.run(trial.setting, chunk).seconds)
    return {number: float(np.median(each)) for number, each in ratios.items()}


def points_of(kept: Sequence[Measured], speedups: Mapping[int, float]) -> tuple[Point, ...]:
    """Of the trials on the front. speedups: as timed in pairs; a trial's own cost stands in where there is none."""
    found = []
    for trial in kept:
        interval = bootstrap(np.asarray(trial.losses))
        speedup = speedups.get(trial.number, 1 / trial.share)
        ratio = 1 / trial.flops if trial.flops > 0 else speedup  # where FLOPs aren't counted
        numbers = {"speedup": speedup, "flop_ratio": ratio, "loss": interval.value}
        numbers |= {"low": interval.low, "high": interval.high}
        rounded = {name: float(f"{number:.4g}") for name, number in numbers.items()}
        found.append(Point(**rounded, setting=trial.setting))
    return told_front(found)


def front_of(
    bench: Bench, kept: Sequence[Measured], speedups: Mapping[int, float], given: Mapping[str, Any], target: str,
    cost: str,
) -> Front:  # fmt: skip
    """given: the call's arguments with their defaults. cost: what trials were judged by.

    Raises RuntimeError if nothing is faster than the full run.
    """
    points = points_of(kept, speedups)
    if not points:
        raise RuntimeError("nothing that was tried is faster than the full run; allow more time, or ask for more steps")
    info, hardware = bench.loss.metric.info, describe_hardware(str(bench.pipe.device))
    return Front(
        call=Facts.of(bench.pipe, given, bench.steps),
        measure=Measure(bench.loss.name, info.label, info.unit, len(kept[0].losses)),
        points=points,
        chosen=chosen(points, target),
        cost=cost,
        dtype=str(bench.pipe.transformer.dtype).removeprefix("torch."),
        hardware=f"{hardware['name']}, {hardware['threads']} threads",
        versions={name: version(name) for name in LIBRARIES},
    )


def existing(path: Path, model: Model) -> Profile | None:
    """The profile that a new front is added to; None if there is no file. Raises ValueError for one that is no profile
    or another model's, before anything was run."""
    if not path.exists():
        return None
    profile = read_profile(path)
    if profile.model != model:
        raise ValueError(f"{path} is the profile of {profile.name}, a {profile.model.told}; name another file")
    return profile
