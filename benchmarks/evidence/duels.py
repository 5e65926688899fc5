"""Ours against the best of the others at equal cost, picture by picture. Pure numbers on the study's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.regime.rivals import GENTLER, PEERS
from benchmarks.regime.settings import FULL, REFERENCE
from benchmarks.regime.study_page import Compared
from ralu_cache.quality.intervals import Interval, bootstrap

OURS, FEWER, CACHES = "ours", "fewer steps", "caches"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A measure that a duel is decided by. higher: whether more is better; None where the full run's is best, less and
    more alike worse. equal: so much of a difference on one picture counts as none."""

    label: str
    unit: str
    higher: bool | None
    digits: int = 1
    equal: float = 1e-9


MEASURES: Mapping[str, Judged] = {
    "attributes": Judged("attributes", "%", True),
    "scenes": Judged("scenes wholly right", "%", True),
    "probability": Judged("probability of the stated", "%", True),
    "sharpness": Judged("distance of the mean gradient to the full run's", "‰", None),
    "spectrum": Judged("spectral distance", "dB", False, 2),
    "perceptual": Judged("perceptual distance", "‰", False, 0),
    "psnr": Judged("PSNR", "dB", True),
    "ssim": Judged("SSIM", "", True, 3),
}
"""What is drawn, how it looks, and how like the full run's picture of the same seed it is."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to draw, at its guidance scale: how many times fewer FLOPs, and measures (N,) of the same N pictures.

    frechet: of those pictures to real renders; nan where they were not kept, or others were measured besides.
    """

    name: str
    kind: str
    scale: float
    ratio: float
    values: Mapping[str, Values]
    frechet: float = math.nan

    @property
    def told(self) -> str:
        return f"{self.name}, guidance {self.scale:g}"

    @property
    def mean(self) -> float:
        return float(self.values["attributes"].mean())


def kind_of(name: str, model: str) -> str:
    """Who offers a setting: this library, anybody who asks for fewer steps of a stock sampler, or another's cache."""
    if name in PEERS[model] or name in GENTLER[model]:
        return CACHES
    stock = name in (FULL, REFERENCE) or " plain steps" in name or " steps of " in name
    return FEWER if stock else OURS


def ways(
    model: str, regimes: Mapping[str, Sequence[Compared]], count: int, frechet: Mapping[str, float] | None = None
) -> list[Way]:
    """Those of all regimes that have the first `count` pictures; the full run of each scale but once.

    frechet: distances by "model/regime/setting/pictures". Of the mean gradient the distance to the full run's picture
    is taken.
    """
    found: dict[tuple[str, float], Way] = {}
    for regime, compared in regimes.items():
        for one in compared:
            if one.count < count or one.name == REFERENCE:
                continue
            scale = float(one.parts[one.starts[0]]["scale"])
            values = {name: one.values(name)[:count] for name in MEASURES}
            values["gradient"] = values["sharpness"]
            values["sharpness"] = abs(values["sharpness"] - one.values("sharpness", one.full)[:count])
            distance = (frechet or {}).get(f"{model}/{regime}/{one.name}/{one.count}", math.nan)
            distance = distance if one.count == count else math.nan
            way = Way(one.name, kind_of(one.name, model), scale, one.ratio, values, distance)
            found.setdefault((one.name, scale), way)
    return list(found.values())


def front(some: Sequence[Way]) -> list[Way]:
    """Those than which no other is both as cheap and drawn as well, the dearest first."""
    kept: list[Way] = []
    for way in sorted(some, key=lambda way: (-way.ratio, -way.mean)):
        if not kept or way.mean > kept[-1].mean:
            kept.append(way)
    return kept[::-1]


@dataclass(frozen=True, eq=False)
class Rival:
    """What others draw at a cost: one way of theirs, or of the pictures of two each a share. kind: of that way, or of
    both. beyond: none is so cheap, and their cheapest stands here. ratio: the cost that it stands for, less where none
    of theirs is so dear."""

    told: str
    kind: str
    values: Mapping[str, Values]
    beyond: bool
    ratio: float
    frechet: float = math.nan

    @property
    def mean(self) -> float:
        return float(self.values["attributes"].mean())


def at_cost(theirs: Sequence[Way], ratio: float) -> Rival:
    """A front's pictures at a cost, interpolated in log FLOPs between its two neighbours."""
    dearer = [way for way in theirs if way.ratio <= ratio] or [theirs[0]]
    cheaper = [way for way in theirs if way.ratio >= ratio]
    low = dearer[-1]
    if not cheaper or cheaper[0] is low:
        return Rival(low.told, low.kind, low.values, not cheaper, low.ratio, low.frechet)
    high = cheaper[0]
    share = math.log(ratio / low.ratio) / math.log(high.ratio / low.ratio)
    values = {name: (1 - share) * low.values[name] + share * high.values[name] for name in low.values}
    told = f"between {low.told} ({low.ratio:.3g}x) and {high.told} ({high.ratio:.3g}x)"
    kind = " and ".join(dict.fromkeys((low.kind, high.kind)))
    return Rival(told, kind, values, False, ratio, (1 - share) * low.frechet + share * high.frechet)


@dataclass(frozen=True, eq=False)
class Duel:
    """One of ours against the best of the others at its cost."""

    ours: Way
    rival: Rival
    kind: str

    def difference(self, measure: str = "attributes") -> Interval:
        """Of ours to theirs, paired."""
        return bootstrap(self.ours.values[measure] - self.rival.values[measure])

    def ahead(self, measure: str) -> Values:
        """By how much ours is better, picture by picture."""
        differences = self.ours.values[measure] - self.rival.values[measure]
        return differences if MEASURES[measure].higher else -differences

    def wins(self, measure: str = "attributes") -> tuple[int, int, int]:
        """Pictures on which ours is better, as good, worse."""
        ahead, equal = self.ahead(measure), MEASURES[measure].equal
        return int((ahead > equal).sum()), int((abs(ahead) <= equal).sum()), int((ahead < -equal).sum())

    def verdict(self, measure: str) -> str:
        """ "wins", "loses" or "even": whether the interval of what ours is ahead excludes 0."""
        ahead = bootstrap(self.ahead(measure))
        if not ahead.excludes_zero:
            return "even"
        return "wins" if ahead.value > 0 else "loses"

    def lost(self, count: int) -> list[int]:
        """The pictures on which ours loses most, by the probability of what the prompt states."""
        return np.argsort(self.ours.values["probability"] - self.rival.values["probability"])[:count].tolist()


def beside_ours(some: Sequence[Way]) -> list[Duel]:
    """Each of the others' caches against our front, the dearest first; none where ours have no front."""
    ours = front([way for way in some if way.kind == OURS])
    theirs = sorted((way for way in some if way.kind == CACHES), key=lambda way: way.ratio)
    return [Duel(way, at_cost(ours, way.ratio), OURS) for way in theirs if ours]


def duels(some: Sequence[Way]) -> list[Duel]:
    """Each of ours, the dearest first, against the best of the others: fewer steps and caches on one front.

    Theirs are the best of what was measured on these pictures, ours all that were, so the choice favours them.
    """
    theirs = front([way for way in some if way.kind in (FEWER, CACHES)])
    ours = sorted((way for way in some if way.kind == OURS), key=lambda way: way.ratio)
    return [Duel(way, rival := at_cost(theirs, way.ratio), rival.kind) for way in ours if theirs]
