"""The results of a sweep to look through: speed against quality as a picture whose points can be clicked."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ralu_cache.report.figures import INK, Figure, plain
from ralu_cache.sweep.groups import LOOKS
from ralu_cache.sweep.outputs import load_summary
from ralu_cache.sweep.pictures import kept
from ralu_cache.sweep.recommend import default_metric
from ralu_cache.sweep.summary import Row, Summary, pareto_front
from ralu_cache.sweep.tables import quality_text, times

INCHES, DPI = (7.2, 4.4), 110
BORDER = (0.1, 0.13, 0.87, 0.8)  # of the axes: left, bottom, width, height as shares of the figure


def find_results(folders: Iterable[Path]) -> dict[str, Path]:
    """Sweeps' results files in these folders and below, by their path."""
    files = {file for folder in folders for file in folder.rglob("*.jsonl")}
    return {str(file.parent): file for file in sorted(files) if _is_sweep(file)}


def _is_sweep(file: Path) -> bool:
    with file.open() as lines:
        try:
            return "sweep" in json.loads(lines.readline())
        except ValueError:
            return False


@dataclass(frozen=True)
class Front:
    """One metric of a sweep at one size, (height, width) in pixels. folder: where its results file lies."""

    summary: Summary
    folder: Path
    metric: str
    size: tuple[int, int]

    @cached_property
    def timed(self) -> bool:
        """Whether speed was measured; else it is told in FLOPs."""
        return any(math.isfinite(row.speedup) for row in self.summary.rows if row.family != "full")

    @cached_property
    def rows(self) -> list[Row]:
        """The settings that have a point, by speed; without the full run where the metric compares with it."""
        rows = [row for row in self.summary.rows if row.setting.size == self.size and self.metric in row.quality]
        rows = [row for row in rows if all(map(math.isfinite, self.point(row)))]
        if self.summary.compares_with_full(self.metric):
            rows = [row for row in rows if row.family != "full"]
        return sorted(rows, key=self.point)

    def point(self, row: Row) -> tuple[float, float]:
        """How many times faster than the full run, or fewer FLOPs where nothing was timed; and the quality."""
        return row.speedup if self.timed else row.flop_ratio, row.quality[self.metric].mean

    def told(self, row: Row) -> str:
        """A setting in one line: name, speed, quality."""
        info = self.summary.header.metrics[self.metric]
        gain = f"{times(self.point(row)[0])} {'faster' if self.timed else 'fewer FLOPs'}"
        return f"{self.summary.label(row)}: {gain}, {info.label} {quality_text(row.quality[self.metric], info)}"

    def pictures(self, row: Row) -> list[tuple[Path, str]]:
        """What was kept of a setting: files and what they show."""
        return [(file, caption) for caption, file in kept(row.setting, self.folder / "pictures").items()]

    def nearest(self, x: float, y: float) -> Row:
        """The setting whose point is nearest to a pixel of `draw`'s picture, counted from its left upper corner."""
        return self.rows[int(np.hypot(*(self.pixels - (x, y)).T).argmin())]

    def draw(self, chosen: Row) -> Image.Image:
        """All points and the front of them; a ring around the chosen one."""
        return self._draw(chosen)[0]

    @cached_property
    def pixels(self) -> NDArray[np.float64]:
        """(rows, 2): where the points are in the picture, from its left upper corner."""
        return self._draw(None)[1]

    def _draw(self, chosen: Row | None) -> tuple[Image.Image, NDArray[np.float64]]:
        figure = Figure(figsize=INCHES, dpi=DPI)
        axes = figure.add_axes(BORDER)
        info, sign = self.summary.header.metrics[self.metric], self.summary.sign(self.metric)
        points = np.array([self.point(row) for row in self.rows])
        front = sorted(pareto_front([(x, sign * y) for x, y in points]), key=lambda index: points[index, 0])
        axes.plot(*points[front].T, color=INK, lw=1)
        for family, look in LOOKS.items():
            group = points[[row.family == family for row in self.rows]]
            if len(group):
                axes.plot(*group.T, look.marker, color=look.colour, ms=9, mec="white", label=look.title, ls="none")
        if chosen is not None:
            axes.plot(*self.point(chosen), "o", ms=20, mfc="none", mec="#c1272d", mew=2)
        gain = "times faster than the full run" if self.timed else "times fewer FLOPs than the full run"
        axes.set_xlabel(gain, color=INK)
        better = f"{', ' + info.unit if info.unit else ''} ({'more' if info.higher else 'less'} is better)"
        axes.set_title(info.label + better, fontsize=10, color=INK)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
        axes.margins(0.08)
        plain(axes)
        file = io.BytesIO()
        figure.savefig(file, dpi=DPI, facecolor="white")
        picture = Image.open(file).convert("RGB")
        return picture, axes.transData.transform(points) * (1, -1) + (0, picture.height)


def open_front(results: Path, metric: str | None = None, size: tuple[int, int] | None = None) -> Front:
    """A results file's front; of the metric and size that matter most if none is named.

    Raises ValueError for a file that is no sweep's, or holds nothing that was timed and judged.
    """
    summary = load_summary(results)
    front = Front(summary, results.parent, metric or default_metric(summary), size or summary.sizes[0])
    if not front.rows:
        raise ValueError(f"{results} holds no setting that was both timed and judged by {front.metric}")
    return front
