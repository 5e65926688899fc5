"""Where others beat this library: at the same speed, by more than the spread."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from ralu_cache.sweep.groups import OTHERS, OURS
from ralu_cache.sweep.summary import Row, Summary

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
    sign = 1 if summary.header.metrics[metric].higher else -1
    found = []
    for rival in summary.front(metric, OTHERS):
        fast = [row for row in _ours(summary, rival) if metric in row.quality and row.high >= rival.low]
        if not fast:
            found.append(Defeat(metric, rival, None))
            continue
        gaps = {row.setting: _gap(rival, row, metric, sign) for row in fast}
        if all(gap > ERRORS * (0.0 if math.isnan(error) else error) for gap, error in gaps.values()):
            best = max(fast, key=lambda row: sign * row.quality[metric].mean)
            found.append(Defeat(metric, rival, best, *gaps[best.setting]))
    return found


def _ours(summary: Summary, rival: Row) -> list[Row]:
    """Ours of the rival's size that were measured on all pictures."""
    size = (rival.setting.height, rival.setting.width)
    rows = (row for row in summary.rows if row.family in OURS and row.comparable)
    return [row for row in rows if (row.setting.height, row.setting.width) == size]


def _gap(rival: Row, ours: Row, metric: str, sign: int) -> tuple[float, float]:
    """(gap, its standard error), paired over the pictures that both were measured on."""
    a, b = rival.quality[metric], ours.quality[metric]
    error = math.nan
    if len(a.values) == len(b.values) > 1:
        differences = [x - y for x, y in zip(a.values, b.values, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return sign * (a.mean - b.mean), error
