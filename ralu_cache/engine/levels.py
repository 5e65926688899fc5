"""What the caller says in steps of the stock schedule, found again on the levels of a plan.

A level is sigma, 1 noise to 0 clean. Pure numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ralu_cache.plane.spatial import Stage

SAME = 1e-6  # levels closer than this are one
SHOWS = 0.8
"""The level down from which a given picture shows through the noise in more than coarse tokens hold.

Measured on tiny FLUX and tiny SD3, four pictures, 18 steps: entered on coarse tokens between 0.4 and 0.8, a late plan
keeps up to 10 dB less of the picture than stock's run from the same level, above 0.8 at most 3.
"""


@dataclass(frozen=True)
class StockSchedule:
    """The levels of the run that the caller asked for: one a step, and 0. `entry`: the steps that `strength` cuts."""

    sigmas: tuple[float, ...]
    entry: int = 0

    @property
    def steps(self) -> int:
        """How many steps the stock pipeline would make."""
        return len(self.sigmas) - 1 - self.entry

    def passed(self, sigma: float) -> int:
        """How many of its steps are done once the level is `sigma`."""
        return sum(level >= sigma - SAME for level in self.sigmas[self.entry + 1 :])

    def after(self, passed: int) -> int:
        """The step that comes once so many are done; the last one stays."""
        return min(passed, self.steps - 1)

    def entered(self, entry: int) -> StockSchedule:
        return replace(self, entry=entry)


def entering(stages: Sequence[Stage], sigma: float) -> tuple[Stage, ...]:
    """What is left of a plan for a picture noised to level `sigma`: begins at exactly this level.

    Above `SHOWS` in the first stage that goes below it, else `on_fine_tokens`. Stages above are left without steps, and
    so is one of which next to nothing is left. The first of the rest's own levels goes where `sigma` all but replaces
    it: where the step between them would be less than a quarter of the plan's own.
    """
    if sigma <= SHOWS:
        stages = on_fine_tokens(stages)
    rest: list[Stage] = []
    for number, stage in enumerate(stages):
        levels = stage.sigmas
        if not stage.steps:
            rest.append(stage)
            continue
        tail = (levels[-2] - levels[-1]) / 4 if number + 1 < len(stages) else SAME
        if levels[-1] >= sigma - tail:
            rest.append(replace(stage, sigmas=levels[-1:]))
            continue
        first = next(place for place, level in enumerate(levels) if level < sigma - SAME)
        if 0 < first < len(levels) - 1 and 4 * (sigma - levels[first]) < levels[first - 1] - levels[first]:
            first += 1
        return (*rest, replace(stage, sigmas=(sigma, *levels[first:])), *stages[number + 1 :])
    raise ValueError(f"no stage of the plan goes below level {sigma}")


def on_fine_tokens(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """A plan that reduces no token: all levels down to where the next stage begins, in the last stage; others empty."""
    *before, last = stages
    above = [level for stage, then in pairwise(stages) for level in stage.sigmas if level > then.sigmas[0] + SAME]
    emptied = (replace(stage, sigmas=stage.sigmas[-1:]) for stage in before)
    return (*emptied, replace(last, sigmas=(*above, *last.sigmas)))


def redivided(stages: Sequence[Stage], sigmas: Sequence[float]) -> tuple[Stage, ...]:
    """A plan's stages, each with as many steps between the same ends, laid out along the caller's own `sigmas`.

    Along them means at even distances in their number: of n levels and 0, level i stands at 1 - i / n, with straight
    lines between. Above the first of them the line goes on to level 1.
    """
    places = np.linspace(0.0, 1.0, len(sigmas))
    levels = np.asarray(sigmas[::-1], dtype=np.float64)
    if levels[-1] < 1 - SAME:
        places, levels = np.append(places, places[-1] + 1 / max(len(sigmas) - 1, 1)), np.append(levels, 1.0)

    def along(stage: Stage) -> Stage:
        start, end = np.interp([stage.sigmas[0], stage.sigmas[-1]], levels, places)
        inner = np.interp(np.linspace(start, end, stage.steps + 1)[1:-1], places, levels)
        return replace(stage, sigmas=(stage.sigmas[0], *map(float, inner), stage.sigmas[-1]))

    return tuple(along(stage) for stage in stages)
