"""How fast each group of methods goes at a given loss of quality."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ralu_cache.sweep.groups import LOOKS
from ralu_cache.sweep.summary import Row, Summary

DROP = 2.0
"""Points of attribute accuracy that may be lost."""


def fastest_within(
    summary: Summary, size: tuple[int, int], metric: str, drop: float = DROP
) -> Mapping[str, Row | None] | None:
    """By group (`Row.family`), the fastest row of a (height, width) that lost at most `drop` against the full run.

    drop: in the metric's unit. Only rows measured on all pictures count. None for a group without such a row; guidance
    alone is left out where it was not measured; None altogether where the full run has no value of the metric. Raises
    ValueError for a drop below 0 or nan.
    """
    if not drop >= 0:
        raise ValueError(f"drop must be a number of at least 0, got {drop!r}")
    rows = [row for row in summary.at_size(size).rows if row.comparable and metric in row.quality]
    full = next((row for row in rows if row.family == "full"), None)
    if full is None:
        return None
    start = summary.score(full, metric)
    kept = [row for row in rows if start - summary.score(row, metric) <= drop and not math.isnan(row.speedup)]
    there = {row.family for row in rows}
    groups = (group for group in LOOKS if group != "full" and (group not in ("guidance", "solver") or group in there))
    return {
        group: max((row for row in kept if row.family == group), key=lambda row: row.speedup, default=None)
        for group in groups
    }


def gain_of_both(fastest: Mapping[str, Row | None]) -> float:
    """How many times faster several parts together are than the fastest of them alone; nan if unknown."""
    parts = ("spatial", "temporal", "guidance", "solver")
    alone = [row.speedup for name in parts if (row := fastest.get(name)) is not None]
    both = fastest["combined"]
    return both.speedup / max(alone) if both is not None and alone else math.nan


def loss_metric(summary: Summary) -> str | None:
    """The metric by which a loss against the full run makes sense: the default one, unless it is a likeness to it."""
    if not summary.header.metrics:
        return None
    name = summary.main_metric
    return None if summary.compares_with_full(name) else name
