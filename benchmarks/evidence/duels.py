"""Ours against the best of the others at equal cost, picture by picture. Pure numbers on the study's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.regime.settings import FULL, PEERS
from benchmarks.regime.study_page import Compared
from ralu_cache.quality.intervals import Interval, bootstrap

OURS, FEWER, CACHES = "ours", "fewer steps", "caches"
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to draw, at its guidance scale: how many times fewer FLOPs, and measures (N,) of the same N pictures."""

    name: str
    kind: str
    scale: float
    ratio: float
    values: Mapping[str, Values]

    @property
    def told(self) -> str:
        return f"{self.name}, guidance {self.scale:g}"

    @property
    def mean(self) -> float:
        return float(self.values["attributes"].mean())


def kind_of(name: str, model: str) -> str:
    """Who offers a setting: this library, anybody who asks for fewer steps of a stock sampler, or another's cache."""
    if name in PEERS[model]:
        return CACHES
    return FEWER if name == FULL or " plain steps" in name or " steps of " in name else OURS


def ways(model: str, regimes: Mapping[str, Sequence[Compared]], count: int) -> list[Way]:
    """Those of all regimes that have the first `count` pictures; the full run of each scale but once."""
    found: dict[tuple[str, float], Way] = {}
    for compared in regimes.values():
        for one in compared:
            if one.count < count:
                continue
            scale = float(one.parts[one.starts[0]]["scale"])
            values = {name: one.values(name)[:count] for name in ("attributes", "probability", "sharpness", "psnr")}
            way = Way(one.name, kind_of(one.name, model), scale, one.ratio, values)
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
    """What others draw at a cost: one way of theirs, or of the pictures of two each a share. beyond: none is so cheap,
    and their cheapest stands here. ratio: the cost that it stands for, less where none of theirs is so dear."""

    told: str
    values: Mapping[str, Values]
    beyond: bool
    ratio: float

    @property
    def mean(self) -> float:
        return float(self.values["attributes"].mean())


def at_cost(theirs: Sequence[Way], ratio: float) -> Rival:
    """A front's pictures at a cost, interpolated in log FLOPs between its two neighbours."""
    dearer = [way for way in theirs if way.ratio <= ratio] or [theirs[0]]
    cheaper = [way for way in theirs if way.ratio >= ratio]
    low = dearer[-1]
    if not cheaper or cheaper[0] is low:
        return Rival(low.told, low.values, not cheaper, low.ratio)
    high = cheaper[0]
    share = math.log(ratio / low.ratio) / math.log(high.ratio / low.ratio)
    values = {name: (1 - share) * low.values[name] + share * high.values[name] for name in low.values}
    return Rival(f"between {low.told} ({low.ratio:.3g}x) and {high.told} ({high.ratio:.3g}x)", values, False, ratio)


@dataclass(frozen=True, eq=False)
class Duel:
    """One of ours against the best of the others at its cost."""

    ours: Way
    rival: Rival
    kind: str

    def difference(self, measure: str = "attributes") -> Interval:
        return bootstrap(self.ours.values[measure] - self.rival.values[measure])

    @property
    def wins(self) -> tuple[int, int, int]:
        """Pictures of which ours has more of the attributes right, as many, fewer."""
        ahead = self.ours.values["attributes"] - self.rival.values["attributes"]
        return int((ahead > 1e-9).sum()), int((abs(ahead) <= 1e-9).sum()), int((ahead < -1e-9).sum())

    def lost(self, count: int) -> list[int]:
        """The pictures on which ours loses most, by the probability of what the prompt states."""
        return np.argsort(self.ours.values["probability"] - self.rival.values["probability"])[:count].tolist()


def beside_ours(some: Sequence[Way]) -> list[Duel]:
    """Each of the others' caches against our front, the dearest first."""
    ours = front([way for way in some if way.kind == OURS])
    theirs = sorted((way for way in some if way.kind == CACHES), key=lambda way: way.ratio)
    return [Duel(way, at_cost(ours, way.ratio), OURS) for way in theirs]


def duels(some: Sequence[Way]) -> list[Duel]:
    """Each of ours, the dearest first, against the best of the others.

    Theirs are the best of what was measured on these pictures, ours all that were, so the choice favours them.
    """
    others = {kind: front([way for way in some if way.kind == kind]) for kind in (FEWER, CACHES)}
    found = []
    for ours in sorted((way for way in some if way.kind == OURS), key=lambda way: way.ratio):
        rivals = {kind: at_cost(theirs, ours.ratio) for kind, theirs in others.items() if theirs}
        kind = max(rivals, key=lambda kind: rivals[kind].mean)
        found.append(Duel(ours, rivals[kind], kind))
    return found
