"""The results of a sweep to look through: speed against quality as points that can be clicked, and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ralu_cache.app.plot import Points
from ralu_cache.app.studies import POINTS, StudyFront, open_study
from ralu_cache.sweep.groups import LOOKS
from ralu_cache.sweep.pictures import kept
from ralu_cache.sweep.summary import Row, Summary, load_summary, pareto_front
from ralu_cache.sweep.tables import quality_text, times


def find_results(folders: Iterable[Path]) -> dict[str, Path]:
    """Sweeps' results files and studies' points in these folders and below, by their path."""
    folders = list(folders)
    files = {file for folder in folders for file in folder.rglob("*.jsonl")}
    studies = {file for folder in folders for file in folder.rglob(POINTS)}
    return {str(file.parent): file for file in sorted({*filter(_is_sweep, files), *studies})}


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
        """The settings that have a point, by speed, see `Summary.judged`."""
        rows = self.summary.at_size(self.size).judged(self.metric)
        return sorted((row for row in rows if all(map(math.isfinite, self._point(row)))), key=self._point)

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """The metrics that there are, (label, name)."""
        return [(self.summary.header.metrics[key].label, key) for key in self.summary.plotted]

    @property
    def names(self) -> list[str]:
        """Of the settings, as `told`, `pictures` and `points` count them."""
        return [self.summary.label(row) for row in self.rows]

    def told(self, place: int) -> str:
        """A setting in one line: name, speed, quality."""
        row, info = self.rows[place], self.summary.header.metrics[self.metric]
        gain = f"{times(self._point(row)[0])} {'faster' if self.timed else 'fewer FLOPs'}"
        return f"{self.summary.label(row)}: {gain}, {info.label} {quality_text(row.quality[self.metric], info)}"

    def pictures(self, place: int) -> list[tuple[Path, str]]:
        """What was kept of a setting: files and what they show."""
        return self._kept(self.rows[place])

    def full(self) -> list[tuple[Path, str]]:
        """The same of the full run."""
        rows = [row for row in self.summary.rows if row.family == "full" and row.setting.size == self.size]
        return [picture for row in rows for picture in self._kept(row)]

    @cached_property
    def points(self) -> Points:
        info, sign = self.summary.header.metrics[self.metric], self.summary.sign(self.metric)
        at = np.array([self._point(row) for row in self.rows])
        front = sorted(pareto_front([(x, sign * y) for x, y in at]), key=lambda index: at[index, 0])
        groups = {look: [place for place, row in enumerate(self.rows) if row.family == family]
                  for family, look in LOOKS.items()}  # fmt: skip
        gain = "times faster than the full run" if self.timed else "times fewer FLOPs than the full run"
        better = f"{', ' + info.unit if info.unit else ''} ({'more' if info.higher else 'less'} is better)"
        return Points(at, front, groups, gain, info.label + better)

    def _point(self, row: Row) -> tuple[float, float]:
        """How many times faster than the full run, or fewer FLOPs where nothing was timed; and the quality."""
        return row.speedup if self.timed else row.flop_ratio, row.quality[self.metric].mean

    def _kept(self, row: Row) -> list[tuple[Path, str]]:
        return [(file, caption) for caption, file in kept(row.setting, self.folder / "pictures").items()]


def open_front(results: Path, metric: str | None = None) -> Front | StudyFront:
    """A file's front; of a sweep of its first size, and of the metric that matters most if none is named.

    Raises ValueError for a file that is neither a sweep's nor a study's, or holds nothing that was timed and judged.
    """
    if results.name == POINTS:
        return open_study(results)
    summary = load_summary(results)
    front = Front(summary, results.parent, metric or summary.main_metric, summary.sizes[0])
    if not front.rows:
        raise ValueError(f"{results} holds no setting that was both timed and judged by {front.metric}")
    return front
