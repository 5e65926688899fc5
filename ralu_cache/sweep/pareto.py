"""Speed against quality, a panel for each metric at each size: all in one PNG, or one by one as SVG for the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from ralu_cache.sweep.groups import LOOKS, OTHERS, OURS, Look, number_key, numbers
from ralu_cache.sweep.summary import Row, Summary
from ralu_cache.sweep.tables import quality_text, times

COLUMNS = 3
MARK = 6.5  # pixels from a mark's middle to its edge
ITERATIONS = 100  # in which numbers are moved apart
SIZE = (5.2, 3.9)  # inches of a panel
LETTER = 0.066  # inches of a letter in the key
TICKS = [head * 2.0**power for power in range(-4, 8) for head in (1, 1.5)]
INK = "#747a87"  # read on white and on black: the page has both
FRONTS = ((OURS, "front of ours", "-", "#009e73"), (OTHERS, "front of the others", "--", "#d55e00"))
LEGEND = (
    "Bars: ± one standard error over the pictures; across, the quartiles of the paired timings. Bold numbers: on the "
    "front of all. Dotted: the full run, not drawn where a metric compares with it."
)
STYLE: Any = {
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08, "font.size": 9, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "svg.fonttype": "none", "svg.hashsalt": "ralu-cache",
}  # fmt: skip
Panel = tuple[tuple[int, int], str]
"""A (height, width) and a metric."""


def panels(summary: Summary) -> list[Panel]:
    """Size after size, in each the metrics in the header's order; those for which nothing but the full run was timed
    are left out.
    """
    every = [(size, name) for size in summary.sizes for name in summary.plotted]
    return [panel for panel in every if any(row.family != "full" for row in drawn(summary, panel))]


def drawn(summary: Summary, panel: Panel) -> list[Row]:
    """The panel's rows by speed, see `Summary.judged`; those without a time have no place in it."""
    size, name = panel
    return [row for row in summary.at_size(size).judged(name) if not math.isnan(row.speedup)]


def draw_panels(summary: Summary) -> dict[Panel, Figure]:
    """A figure for each of `panels`."""
    figures = {}
    for panel in panels(summary):
        with matplotlib.rc_context(STYLE):
            figures[panel] = Figure(figsize=SIZE)
            axes = figures[panel].subplots()
            _draw(axes, summary, panel)
            figures[panel].draw_without_rendering()  # the numbers' places depend on how large the panel became
            _number(axes, summary, panel)
    return figures


def save_pareto(summary: Summary, figures: Mapping[Panel, Figure], path: Path) -> None:
    """All panels, and what their marks and numbers mean; nothing if there are none."""
    if not figures:
        return
    columns = min(COLUMNS, len(figures))
    with matplotlib.rc_context(STYLE):
        shown = [_picture(figure) for figure in figures.values()]
        key = _picture(_key(summary, columns * SIZE[0]))
    width, height = shown[0].size
    top = height * math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (width * columns, top + key.height), "white")
    for index, picture in enumerate(shown):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    sheet.paste(key, (0, top))
    sheet.save(path)


def _picture(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, dpi=130)
    return Image.open(file)


def panel_svg(summary: Summary, panel: Panel, figure: Figure) -> str:
    """A panel as an `<svg>` to stand in a page; a point tells its setting when hovered."""
    file, nothing = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    told = [escape(_told(summary, row, panel[1])) for row in drawn(summary, panel)]
    text = re.sub(r'<g id="row(\d+)">', lambda match: f"<g><title>{told[int(match[1])]}</title>", file.getvalue())
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # the same in every figure, and nothing refers to them
    box = f"0 0 {72 * SIZE[0]:g} {72 * SIZE[1]:g}"
    head = f'<svg viewBox="{box}" role="img" aria-label="{escape(_title(summary, panel))}">'
    return re.sub(r"^.*?<svg[^>]*>", lambda _: head, text, count=1, flags=re.DOTALL)


def sign_svg(family: str) -> str:
    """A group's mark for legends and tables of the page."""
    marker = MarkerStyle(LOOKS[family].marker)
    corners = np.asarray(marker.get_path().transformed(marker.get_transform()).to_polygons()[0])
    size = np.abs(corners).max()
    path = "L".join(f"{x:.2f} {-y:.2f}" for x, y in corners / size)
    path = f'<path d="M{path}Z" fill="{LOOKS[family].colour}"/>'
    return f'<svg class="sign" viewBox="-1 -1 2 2" aria-hidden="true">{path}</svg>'


def _draw(axes: Axes, summary: Summary, panel: Panel) -> None:
    size, name = panel
    alone, rows = summary.at_size(size), drawn(summary, panel)
    info = summary.header.metrics[name]
    axes.set_title(_title(summary, panel), loc="left")
    axes.set_xlabel("times faster than the full run")
    axes.set_ylabel(f"{info.unit + ', ' if info.unit else ''}{'more' if info.higher else 'less'} is better")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.ticklabel_format(axis="y", useOffset=False)
    for families, _, style, colour in FRONTS:
        front = [(row.speedup, row.quality[name].mean) for row in alone.front(name, families)]
        axes.plot(*zip(*front, strict=True) if front else ([], []), style, color=colour, lw=1.1, alpha=0.6, zorder=1)
    for index, row in enumerate(rows):
        look, value = LOOKS[row.family], row.quality[name]
        if row.family == "full":
            axes.axhline(value.mean, color=look.colour, lw=0.8, ls=":")
        across = [[row.speedup - row.low], [row.high - row.speedup]]
        mark, *_ = axes.errorbar(
            row.speedup, value.mean, 0 if math.isnan(value.error) else value.error, across, fmt=look.marker,
            color=look.colour, ecolor=look.colour + "70", ms=7, mec="white", mew=0.3, elinewidth=0.7,
        )  # fmt: skip
        mark.set_gid(f"row{index}")


def _number(axes: Axes, summary: Summary, panel: Panel) -> None:
    """The settings' numbers beside the points of finished axes, moved apart; bold on the front of all."""
    (size, name), told = panel, numbers(summary)
    front = summary.at_size(size).front(name)
    named = [row for row in drawn(summary, panel) if row.family != "full"]
    points = np.array([(row.speedup, row.quality[name].mean) for row in named])
    texts = [
        axes.text(
            x, y, str(told[number_key(row)]), fontsize=7, color=LOOKS[row.family].colour, ha="center", va="center",
            fontweight="bold" if row in front else "normal",
        )
        for row, (x, y) in zip(named, points, strict=True)
    ]  # fmt: skip
    middles = axes.transData.transform(points)
    marks = [Bbox(axes.transData.inverted().transform([xy - MARK, xy + MARK])) for xy in middles]
    adjust_text(
        texts, ax=axes, objects=marks, iter_lim=ITERATIONS, min_arrow_len=9, expand=(1.2, 1.25), force_text=(0.3, 0.5),
        arrowprops={"arrowstyle": "-", "lw": 0.4, "color": INK},
    )  # fmt: skip


def _key(summary: Summary, width: float) -> Figure:
    """What the marks and the numbers mean, so many inches wide."""
    told, families = numbers(summary), {number_key(row): row.family for row in summary.rows}
    several = len({steps for method, steps in told if not method.startswith("steps:")}) > 1
    there = set(families.values())
    marks = [_mark(look, look.title) for family, look in LOOKS.items() if family in there]
    marks += [Line2D([], [], ls=style, color=colour, label=title) for _, title, style, colour in FRONTS]
    names = []
    for (method, steps), number in told.items():
        name = f"{number}  {method}" + (f", {steps} steps" if several and not method.startswith("steps:") else "")
        names.append(_mark(LOOKS[families[method, steps]], name, ms=4))
    columns = max(1, int(width / (0.4 + LETTER * max(len(str(name.get_label())) for name in names))))
    figure = Figure(figsize=(width, 0.6 + 0.165 * math.ceil(len(names) / columns)))
    figure.legend(handles=marks, loc="upper center", ncols=len(marks), frameon=False, fontsize=8)
    figure.legend(
        handles=names, loc="lower center", ncols=columns, frameon=False, fontsize=7.5, title=LEGEND, title_fontsize=8,
        labelcolor="linecolor", handletextpad=0.3,
    )  # fmt: skip
    return figure


def _mark(look: Look, label: str, ms: float = 7) -> Line2D:
    return Line2D([], [], ls="none", marker=look.marker, color=look.colour, label=label, ms=ms)


def _title(summary: Summary, panel: Panel) -> str:
    (height, width), name = panel
    likeness = " to the full run" if summary.compares_with_full(name) else ""
    where = f", {width}x{height} pixels" if len(summary.sizes) > 1 else ""
    return summary.header.metrics[name].label + likeness + where


def _told(summary: Summary, row: Row, name: str) -> str:
    value = quality_text(row.quality[name], summary.header.metrics[name])
    return f"{summary.label(row)}: {times(row.speedup)}, {value}"
