"""Speed against quality: a panel for each metric, a block of panels for each size (needs matplotlib)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ralu_cache.sweep.groups import LOOKS, OTHERS, OURS, number_key, numbers
from ralu_cache.sweep.panel import BARS, Panel, panels
from ralu_cache.sweep.placing import place_labels
from ralu_cache.sweep.scales import speed_ticks
from ralu_cache.sweep.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMNS = 3
PANEL = (5.2, 3.9)  # inches
KEY_LINE = 0.17  # inches
FRONTS = ((OURS, "front of ours", "-", "#009e73"), (OTHERS, "front of the others", "--", "#d55e00"))


def save_pareto(summary: Summary, path: Path) -> None:
    """Numbers at the points are told below the panels; lines join what is on the front of ours and of the others."""
    from matplotlib.figure import Figure

    shown = panels(summary)
    columns = min(COLUMNS, max(len(summary.plotted), 1))
    lines = math.ceil(len(summary.plotted) / columns) * len(summary.sizes)
    key = KEY_LINE * (math.ceil(len(numbers(summary)) / columns) + 5 + _legend_lines(columns))
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * max(lines, 1) + key), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(PANEL[1] * max(lines, 1), key))[:, 0]
    drawn: list[tuple[Axes, Panel]] = []
    for index, panel in enumerate(shown):
        line, column = divmod(index % len(summary.plotted), columns)
        line += index // len(summary.plotted) * (lines // len(summary.sizes))
        axes = top.add_subplot(lines, columns, line * columns + column + 1)
        _draw(axes, panel)
        drawn.append((axes, panel))
    _key(bottom, summary, columns, drawn)
    figure.draw_without_rendering()  # the labels' places depend on how large the panels became
    for axes, panel in drawn:
        _number(figure, axes, panel, numbers(summary))
    figure.savefig(path, dpi=130)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xscale("log")
    axes.set_xlim(*panel.x)
    axes.set_ylim(*panel.y)
    ticks = speed_ticks(*panel.x)
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("times faster than the full run")
    axes.set_ylabel(panel.quality)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)
    if panel.full is not None:
        axes.axhline(panel.full, color=LOOKS["full"].colour, lw=0.8, ls=":")
    for families, _, style, colour in FRONTS:
        front = [point for point in panel.points if point.row in panel.fronts[families]]
        axes.plot([p.x for p in front], [p.y for p in front], style, color=colour, lw=1.1, alpha=0.6, zorder=1)
    for family, look in LOOKS.items():
        points = [point for point in panel.points if point.row.family == family]
        x, y = [p.x for p in points], [p.y for p in points]
        across = [[p.x - p.left for p in points], [p.right - p.x for p in points]]
        axes.errorbar(
            x, y, [p.error for p in points], across, fmt=look.marker, color=look.colour, ms=7, elinewidth=0.7,
            mec="white", mew=0.3, ecolor=look.colour + "90",
        )  # fmt: skip
    axes.set_title(panel.note, fontsize=7.5, loc="right", color="#555555")


def _number(figure: Figure, axes: Axes, panel: Panel, told: dict[tuple[str, int], int]) -> None:
    """The points' numbers, moved apart; bold on the front."""
    named = [point for point in panel.points if point.row.family != "full"]
    scale = 72 / figure.dpi
    corner = axes.transAxes.transform((0, 0))
    size = (axes.transAxes.transform((1, 1)) - corner) * scale
    points = [tuple((axes.transData.transform((p.x, p.y)) - corner) * scale) for p in named]
    places = place_labels(points, (9.0, 7.5), (size[0], size[1]))
    for point, at, place in zip(named, points, places, strict=True):
        offset = (place[0] - at[0], place[1] - at[1])
        axes.annotate(
            str(told[number_key(point.row)]), (point.x, point.y), offset, textcoords="offset points", ha="center",
            va="center", fontsize=7, color=LOOKS[point.row.family].colour,
            fontweight="bold" if point.row in panel.front else "normal",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#999999", "shrinkB": 2, "shrinkA": 0},
        )  # fmt: skip


def _legend_lines(columns: int) -> int:
    return math.ceil((len(LOOKS) + len(FRONTS)) / (3 * columns))


def _key(figure: SubFigure, summary: Summary, columns: int, drawn: list[tuple[Axes, Panel]]) -> None:
    """What the marks and the numbers mean."""
    from matplotlib.lines import Line2D

    there = {point.row.family for _, panel in drawn for point in panel.points}
    marks = [
        Line2D([], [], ls="none", marker=look.marker, color=look.colour, label=look.title)
        for family, look in LOOKS.items() if family in there
    ]  # fmt: skip
    marks += [Line2D([], [], ls=style, color=colour, label=title) for _, title, style, colour in FRONTS]
    figure.legend(handles=marks, loc="upper center", ncols=3 * columns, frameon=False, fontsize=8)
    below = 2.4 + 1.2 * _legend_lines(columns)  # lines
    inches = figure.bbox.height / figure.figure.dpi
    figure.text(
        0.5,
        1 - (below - 1.2) * KEY_LINE / inches,
        f"{BARS} Bold numbers: on the front of all.",
        ha="center",
        fontsize=8,
    )
    told = numbers(summary)
    families = {number_key(row): row.family for row in summary.rows}
    several = len({steps for method, steps in told if not method.startswith("steps:")}) > 1
    each = math.ceil(len(told) / columns)
    for index, ((method, steps), number) in enumerate(told.items()):
        column, line = divmod(index, each)
        name = f"{number}  {method}" + (f", {steps} steps" if several and not method.startswith("steps:") else "")
        where = (0.02 + column / columns, 1 - (line + below) * KEY_LINE / inches)
        figure.text(*where, name, fontsize=7.5, color=LOOKS[families[method, steps]].colour, va="center")
