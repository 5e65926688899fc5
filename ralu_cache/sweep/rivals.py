"""Where others beat this library: at the same speed, by more than the spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ralu_cache.sweep.groups import OTHERS, OURS
from ralu_cache.sweep.summary import Row, Summary, standard_error

ERRORS = 2
"""A gap counts from so many standard errors on."""


@dataclass(frozen=True)
class Defeat:
    """Another method's row that beats all of ours that are as fast.

    ours: the best of those, or None if none of ours is as fast. gap: how much better the rival is, more is more
    whichever way the metric goes, and its standard error over the same pictures; nan if unknown.
    """

    metric: str
    rival: Row
    ours: Row | None
    gap: float = math.nan
    error: float = math.nan


def defeats(summary: Summary, metric: str) -> list[Defeat]:
    """The rivals (peers, fewer plain steps) on the others' front of each size that beat ours; by speed.

    As fast: the quartiles of the speeds overlap, or ours is faster. Beaten: the rival is better by more than `ERRORS`
    standard errors of the gap, picture by picture, than each of ours that is as fast; without an error, by any gap.
    """
    found = []
    for rival in summary.front(metric, OTHERS):
        ours = [row for row in summary.rows if row.family in OURS and row.comparable and metric in row.quality]
        fast = [row for row in ours if row.setting.size == rival.setting.size and row.high >= rival.low]
        if not fast:
            found.append(Defeat(metric, rival, None))
            continue
        gaps = {row.setting: _gap(summary, rival, row, metric) for row in fast}
        if all(gap > ERRORS * (0.0 if math.isnan(error) else error) for gap, error in gaps.values()):
            best = max(fast, key=lambda row: summary.score(row, metric))
            found.append(Defeat(metric, rival, best, *gaps[best.setting]))
    return found


def _gap(summary: Summary, rival: Row, ours: Row, metric: str) -> tuple[float, float]:
    """(gap, its standard error), paired over the pictures that both were measured on."""
    gap, error = summary.score(rival, metric) - summary.score(ours, metric), math.nan
    a, b = rival.quality[metric].values, ours.quality[metric].values
    if len(a) == len(b) > 1:
        error = standard_error([x - y for x, y in zip(a, b, strict=True)])
    return gap, error
