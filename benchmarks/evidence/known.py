"""What the study's rows hold of each way to draw, on the same pictures."""

from __future__ import annotations

from benchmarks.evidence.duels import Duel, Way, beside_ours, ways
from benchmarks.regime.rivals import FARTHEST
from benchmarks.regime.settings import FULL, REGIMES
from benchmarks.regime.study import Study
from benchmarks.regime.study_page import compared

NEEDED = (FULL, "ralu-8x", "ralu-12x", "ralu-18x", "7 plain steps")


def known_ways(study: Study, count: int) -> list[Way]:
    """All that have the first `count` pictures."""
    frechet = {name: each[0] for name, each in study.distances().items()}
    return ways(study.model, {regime: compared(study, regime) for regime in REGIMES}, count, frechet)


def pictures_of(study: Study, most: int) -> int:
    """So many that ours under strong guidance, plain steps and the caches that go farthest, the last two also at their
    best guidance, have them, at most `most`; 0 if nothing was drawn."""
    strong, best = compared(study, "strong"), compared(study, "best")
    counts = {one.name: one.count for one in strong}
    plain = [one.count for one in best if "plain steps" in one.name]
    caches = [one.count for one in (*strong, *best) if one.name in FARTHEST]
    return min(most, *plain, *caches, *(counts.get(name, 0) for name in NEEDED))


def all_caches(study: Study, most: int) -> list[Duel]:
    """Each of the others' caches beside ours on as many pictures as it has, the dearest first."""
    counts = sorted({min(one.count, most) for regime in REGIMES for one in compared(study, regime)})
    found: dict[str, Duel] = {}
    for count in counts:  # more pictures replace fewer
        found |= {duel.ours.told: duel for duel in beside_ours(known_ways(study, count))}
    return sorted(found.values(), key=lambda duel: duel.ours.ratio)
