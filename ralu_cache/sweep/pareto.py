"""Speed against quality, a panel for each metric, and the pictures along the front (needs matplotlib)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ralu_cache.sweep.pictures import KEPT, slug
from ralu_cache.sweep.recommend import default_metric
from ralu_cache.sweep.summary import Row, Summary

LOOKS = {
    "full": ("#30343f", "*"), "steps": ("#8a8f9c", "."), "spatial": ("#e09f3e", "s"), "temporal": ("#3d5a98", "o"),
    "combined": ("#2a9d8f", "D"), "peer": ("#b5485d", "^"),
}  # fmt: skip


def save_pareto(summary: Summary, path: Path) -> None:
    """A panel for each metric; plain step reduction is the line to beat, what is on the front is ringed and named."""
    from matplotlib.figure import Figure

    names = [name for name in summary.header.metrics if any(name in row.quality for row in summary.rows)]
    figure = Figure(figsize=(6.2 * max(len(names), 1), 4.6), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        _panel(axes, summary, name)
        if index == 0:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def save_strip(summary: Summary, pictures: Path, path: Path, size: int = 128) -> None:
    """The kept pictures of each row on the main metric's front, one line each; nothing if none were kept."""
    rows = [row for row in front_rows(summary) if picture_files(row, pictures)]
    if not rows:
        return
    sheet = Image.new("RGB", (260 + KEPT * size, len(rows) * size), "white")
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        draw.text((6, line * size + size // 2 - 14), f"{summary.label(row)}\n{row.speedup:.2f}x", fill="black")
        for file in picture_files(row, pictures):
            with Image.open(file) as picture:
                sheet.paste(picture.convert("RGB").resize((size, size)), (260 + int(file.stem) * size, line * size))
    sheet.save(path)


def front_rows(summary: Summary) -> list[Row]:
    """The front of the metric that matters most."""
    return summary.front(default_metric(summary)) if summary.header.metrics else []


def picture_files(row: Row, pictures: Path) -> list[Path]:
    files = (pictures / slug(row.setting) / f"{index}.png" for index in range(KEPT))
    return [file for file in files if file.exists()]


def _panel(axes: Any, summary: Summary, name: str) -> None:
    info, front = summary.header.metrics[name], summary.front(name)
    for family, (colour, marker) in LOOKS.items():
        rows = [row for row in summary.rows if row.family == family and name in row.quality]
        rows = sorted((row for row in rows if not math.isnan(row.speedup)), key=lambda row: row.speedup)
        if not rows:
            continue
        x, y = [row.speedup for row in rows], [row.quality[name].mean for row in rows]
        errors = [row.quality[name].error for row in rows]
        style = "-" if family == "steps" else "none"
        axes.errorbar(x, y, yerr=errors, fmt=marker, ls=style, color=colour, label=family, lw=1, ms=6)
    for number, row in enumerate(front):
        point = (row.speedup, row.quality[name].mean)
        axes.plot(*point, "o", ms=12, mfc="none", mec="#30343f")
        offset = (7, 7) if number % 2 == 0 else (7, -13)
        axes.annotate(summary.label(row), point, xytext=offset, textcoords="offset points", fontsize=6.5)
    axes.set_xlabel("times faster than the full run")
    axes.set_ylabel(f"{info.label}{f' [{info.unit}]' if info.unit else ''}{'' if info.higher else ' (less is better)'}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12, y=0.1)
