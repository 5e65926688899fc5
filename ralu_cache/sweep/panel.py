"""What one plot shows, one metric at one size, whether matplotlib or SVG draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ralu_cache.sweep.groups import OTHERS, OURS
from ralu_cache.sweep.recommend import at_size
from ralu_cache.sweep.scales import Range, linear_limits, speed_limits
from ralu_cache.sweep.summary import Row, Summary

BARS = "Bars: ± one standard error over the pictures; across, the quartiles of the paired timings."


@dataclass(frozen=True)
class Point:
    """A row's place: speed-up `x` from quartile `left` to `right`, the metric `y` and its standard error (0: none)."""

    row: Row
    x: float
    left: float
    right: float
    y: float
    error: float


@dataclass(frozen=True)
class Panel:
    """Points, the axes' limits, which hold all bars, and what stands beside them.

    quality: the title of the vertical axis. full: the full run's value, to draw across; None where it is compared with
    itself, as `note` then says. front: of all rows; fronts: of `OURS` and of `OTHERS` alone.
    """

    metric: str
    title: str
    quality: str
    points: tuple[Point, ...]
    x: Range
    y: Range
    full: float | None
    note: str
    front: tuple[Row, ...]
    fronts: Mapping[tuple[str, ...], tuple[Row, ...]]


def panels(summary: Summary) -> list[Panel]:
    """Size after size, in each the metrics in the header's order."""
    return [_panel(summary, size, name) for size in summary.sizes for name in summary.plotted]


def _panel(summary: Summary, size: tuple[int, int], name: str) -> Panel:
    info, alone = summary.header.metrics[name], at_size(summary, size)
    likeness = summary.compares_with_full(name)
    rows = [row for row in alone.rows if name in row.quality and not math.isnan(row.speedup)]
    points = tuple(_point(row, name) for row in rows if row.family != "full" or not likeness)
    points = tuple(sorted(points, key=lambda point: point.x))
    where = f", {size[1]}x{size[0]} pixels" if len(summary.sizes) > 1 else ""
    quality = f"{info.label}{f' [{info.unit}]' if info.unit else ''} ({'more' if info.higher else 'less'} is better)"
    return Panel(
        metric=name,
        title=f"{info.label}{' to the full run' if likeness else ''}{where}",
        quality=quality,
        points=points,
        x=speed_limits([(point.left, point.right) for point in points]),
        y=linear_limits([(point.y - point.error, point.y + point.error) for point in points] or [(0.0, 1.0)]),
        full=None if likeness else next((row.quality[name].mean for row in rows if row.family == "full"), None),
        note="full run left out: equal to itself" if likeness else "",
        front=tuple(alone.front(name)),
        fronts={families: tuple(alone.front(name, families)) for families in (OURS, OTHERS)},
    )


def _point(row: Row, name: str) -> Point:
    value = row.quality[name]
    error = 0.0 if math.isnan(value.error) else value.error
    return Point(row, row.speedup, row.low, row.high, value.mean, error)
