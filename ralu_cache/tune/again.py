"""A second look at what the search liked, on seeds of its own: of many settings seen on few prompts some had luck."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from ralu_cache.tune.bench import Bench
from ralu_cache.tune.front import Measured

logger = logging.getLogger("ralu_cache")
MOST = 16  # settings that are looked at again
SEEDS = 1_000_000  # so far from the seed of the search
FEWEST = 2  # prompts


def candidates(trials: Sequence[Measured], most: int = MOST) -> list[Measured]:
    """Of each span of speed, `most` of them up to the fastest and equal in its logarithm, the whole trial that surely
    lost least; from costly to cheap."""
    whole = [trial for trial in trials if trial.whole and trial.share < 1]
    fastest = max((-math.log(trial.share) for trial in whole), default=0.0)
    best: dict[int, Measured] = {}
    for trial in whole:
        span = min(int(-math.log(trial.share) / fastest * most), most - 1)
        if span not in best or trial.high < best[span].high:
            best[span] = trial
    return sorted(best.values(), key=lambda trial: -trial.share)


def looked_at_again(
    bench: Bench, study: Any, some: Sequence[Measured], seconds: float, end: float
) -> list[Measured]:
    """The trials with their losses on other seeds of the same prompts, all on the same number of them; none if the time
    is too short for two.

    seconds: of the full run of a prompt, about. end: of `time.monotonic`, when no further prompts are begun. What was
    drawn before is kept in the study.
    """
    other = replace(bench, subjects=tuple(replace(each, seed=each.seed + SEEDS) for each in bench.subjects))
    known = {trial.number: list(study.user_attrs.get(_name(trial), ())) for trial in some}
    seen = 0
    for chunk in tqdm(other.chunks(FEWEST), desc="on other seeds", unit="call"):
        missing = [trial for trial in some if len(known[trial.number]) < chunk.stop]
        cost = len(chunk) * seconds * (1 + sum(trial.share for trial in missing))
        if missing and time.monotonic() + cost > end:
            break
        for trial in missing:
            run = other.run(trial.setting, chunk)
            known[trial.number] += [round(loss, 5) for loss in other.losses(run.pictures, chunk)]
            study.set_user_attr(_name(trial), known[trial.number])
        seen = chunk.stop
    if not some or seen < FEWEST:
        logger.warning("no time was left to draw the best settings on other seeds: what they promise may be luck")
        return []
    return [replace(trial, losses=tuple(known[trial.number][:seen])) for trial in some]


def _name(trial: Measured) -> str:
    return f"again {trial.number}"
