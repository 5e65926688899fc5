"""What a trial measured, which trials are worth keeping, and which are given up early. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ralu_cache.profiles.profile import Point
from ralu_cache.profiles.setting import Setting

MARGIN = 0.15
"""By this share of its loss, and by a standard error of the mean of so few prompts, a setting must be worse than a
cheaper one, on the same first prompts, to be given up."""
MOST = 12  # points of a front


@dataclass(frozen=True)
class Measured:
    """A trial. losses: of each prompt it has seen, the first first. share: of the full run's cost that is minimised
    (seconds, or FLOPs); flops: of its FLOPs. whole: whether it saw all prompts. levels: see `Run`."""

    number: int
    setting: Setting
    losses: tuple[float, ...]
    share: float
    flops: float
    whole: bool = True
    levels: tuple[tuple[float, str, bool, float], ...] = ()

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval of the mean loss, by its standard error."""
        few = len(self.losses) < 2
        return self.loss if few else self.loss + 1.96 * float(np.std(self.losses, ddof=1)) / math.sqrt(len(self.losses))


def hopeless(losses: Sequence[float], share: float, others: Iterable[Measured]) -> bool:
    """True if another trial that saw all prompts costs no more and is clearly better on the prompts seen so far; or if
    it costs as much as the full run."""
    seen, mean = len(losses), float(np.mean(losses))

    def beats(other: Measured) -> bool:
        margin = max(MARGIN * abs(mean), float(np.std(other.losses)) / math.sqrt(seen))
        return other.whole and other.share <= share and float(np.mean(other.losses[:seen])) < mean - margin

    return share >= 1 or any(beats(other) for other in others)


def front(trials: Iterable[Measured], most: int = MOST) -> list[Measured]:
    """The whole trials that are cheaper than the full run and than which none is both cheaper and better, from costly
    to cheap; thinned out to `most`, evenly in the logarithm of their speed.

    Better is what surely loses less: of many settings seen on few prompts, some have a low mean by luck.
    """
    kept: list[Measured] = []
    whole = [trial for trial in trials if trial.whole and trial.share < 1]
    for trial in sorted(whole, key=lambda each: (each.share, each.high)):
        if not kept or trial.high < kept[-1].high:
            kept.append(trial)
    kept.reverse()
    if len(kept) <= most:
        return kept
    speeds = -np.log([trial.share for trial in kept])
    wanted = np.linspace(speeds[0], speeds[-1], most)
    return [kept[index] for index in sorted({int(np.abs(speeds - speed).argmin()) for speed in wanted})]


def told_front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points than which none is both faster and better, from slow to fast."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.speedup, each.high)):
        if point.speedup > 1 and (not kept or point.high < kept[-1].high):
            kept.append(point)
    return tuple(reversed(kept))


TARGETS = ("speed", "loss")


def chosen(points: Sequence[Point], target: str) -> int:
    """The index of the point that is taken where nobody says how fast or how good.

    "loss": the fastest whose mean loss lies within the interval of the least one. "speed": the knee between the full
    run and the fastest, where the share of the speed (its logarithm) exceeds the share of the loss (at the upper end of
    its interval) most. Raises ValueError for another target.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; accepted: {', '.join(TARGETS)}")
    least = min(points, key=lambda point: point.loss)
    if target == "loss":
        return max(index for index, point in enumerate(points) if point.loss <= least.high)
    most, worst = math.log(points[-1].speedup), max(point.high for point in points)

    def gain(index: int) -> float:
        return math.log(points[index].speedup) / most - (points[index].high / worst if worst > 0 else 0.0)

    return max(range(len(points)), key=gain)


def hypervolume(trials: Iterable[Measured], worst: float, fastest: float = 32.0) -> float:
    """The area under a loss of `worst` and above the front, over the logarithm of the speed from 1 to `fastest`, as a
    share of all of it: 0 for nothing, 1 for no loss at any speed."""
    kept = front(trials, most=10**6)
    area, at = 0.0, 0.0
    for trial in kept:  # from slow to fast: each holds for all speeds up to its own, where none before it did
        speed = min(-math.log(trial.share), math.log(fastest))
        area += max(speed - at, 0) * max(worst - trial.loss, 0)
        at = max(at, speed)
    return area / (math.log(fastest) * worst)
