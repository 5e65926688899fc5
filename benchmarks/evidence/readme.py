"""README's main table: each preset against the best of the others at its cost (`benchmarks.readme_table` writes it),
and below it what each loses to the full run on all pictures that there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.duels import Duel, duels
from benchmarks.evidence.known import known_ways, pictures_of
from benchmarks.regime.settings import FOUND, FULL, REGIMES, STRONG
from benchmarks.regime.study import COUNT, Study
from benchmarks.regime.study_page import ALL, Compared, compared, shown
from ralu_cache.report.table import Table

PRESETS = ("ralu-4x", "ralu-7x", "ralu-8x", "ralu-12x", "ralu-15x", "ralu-18x", "ralu-22x")
"""In the order of their cost; at guidance 6, but for the last one, which is drawn at its best."""


def faster_of(study: Study) -> dict[tuple[str, float], float]:
    """How many times as fast by the clock, by name and guidance scale; nan where that wasn't measured."""
    every = [one for regime in REGIMES for one in compared(study, regime)]
    return {(one.name, _scale(one)): one.faster() for one in every}


def _scale(one: Compared) -> float:
    return float(one.parts[one.starts[0]]["scale"])


def found_of(study: Study) -> tuple[str, dict[str, list[str]]]:
    """How the full run draws, and of each preset its three cells."""
    count = pictures_of(study, COUNT)
    every, faster = known_ways(study, count), faster_of(study)
    fought = duels(every)
    full = next(way for way in every if (way.name, way.scale) == (FULL, STRONG))
    return f"{full.mean:.1f}", {
        name: cells(duel, faster[name, duel.ours.scale])
        for name in PRESETS if (duel := of_preset(fought, name)) is not None
    }  # fmt: skip


def of_preset(found: Sequence[Duel], name: str) -> Duel | None:
    """Its duel at strong guidance; at another scale if there is none."""
    mine = [duel for duel in found if duel.ours.name == name]
    return next((duel for duel in mine if duel.ours.scale == STRONG), mine[0] if mine else None)


def cells(duel: Duel, faster: float) -> list[str]:
    """Cost, what is drawn, and by how much the best of the others at this cost draw less."""
    return [
        f"{duel.ours.ratio:.3g}x" + ("" if math.isnan(faster) else f" ({faster:.2g}x)"), f"{duel.ours.mean:.1f}",
        f"{duel.rival.mean:.1f}: {shown(duel.difference(), 1, '+')}",
    ]  # fmt: skip


def main_table(results: Path) -> str:
    """The Markdown table from the study's folder; models of which nothing was drawn are left out."""
    found = {
        model: found_of(study)
        for model in FOUND if pictures_of(study := Study(model, results), COUNT)
    }  # fmt: skip
    titles, words = [""], [0]
    for model in found:
        words.append(len(titles) + 2)
        titles += [f"{model}: fewer FLOPs (faster)", "attributes, %", "the others at this cost: ours are ahead by"]
    rows = [["full run, 50 steps", *(cell for full, _ in found.values() for cell in ("1x", full, ""))]]
    for name in PRESETS:
        each = [known.get(name, ["–"] * 3) for _, known in found.values()]
        if any(cell != "–" for some in each for cell in some):
            rows.append([f"`{name}`", *(cell for some in each for cell in some)])
    losses = "; ".join(lost(Study(model, results)) for model in found)
    table = Table(titles, rows, words).markdown()
    return f"{table}\n\nPoints of attributes that they lose to the full run, on all pictures drawn: {losses}.\n"


def lost(study: Study) -> str:
    """What each preset has less of attributes than the full run, in points, on the most pictures that any has."""
    every = [one for regime in REGIMES for one in compared(study, regime, ALL)]
    first = {one.name: one for one in reversed(every) if one.name in PRESETS}  # at strong guidance, if it is there
    most = max(one.count for one in first.values())
    points = (f"{name[5:]} {-first[name].difference('attributes').value:.1f}" for name in PRESETS
              if name in first and first[name].count == most)  # fmt: skip
    return f"{study.model} ({most}) {', '.join(points)}"
