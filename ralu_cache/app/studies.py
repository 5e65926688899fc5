"""A study of `ralu-cache tune` to look through: the points of its front, which `write_page` left, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ralu_cache.app.plot import Points
from ralu_cache.sweep.groups import LOOKS

POINTS = "points.json"
"""What `ralu_cache.tune.page.write_page` calls them."""


@dataclass(frozen=True)
class StudyFront:
    """points.json of a study, read. folder: where it lies; what it names lies below."""

    folder: Path
    data: Mapping[str, Any]

    metric = "loss"

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """See `ralu_cache.app.results.Front`, like all here."""
        return [(f"loss of {self.data['measure']}", self.metric)]

    @property
    def names(self) -> list[str]:
        return [point["told"] for point in self._points]

    def told(self, place: int) -> str:
        point = self._points[place]
        return (
            f"{point['told']}: {point['speedup']:.3g}x {self.data['gain']}, loss {point['loss']:.3g} "
            f"({point['low']:.3g} to {point['high']:.3g}) {self.data['unit']}".rstrip()
        )

    def pictures(self, place: int) -> list[tuple[Path, str]]:
        return self._kept(self._points[place]["picture"], "the prompts of the study, from the first on")

    def full(self) -> list[tuple[Path, str]]:
        return self._kept(self.data["full"], "the same prompts in full")

    @cached_property
    def points(self) -> Points:
        at = np.array([(point["speedup"], point["loss"]) for point in self._points])
        unit = f", {self.data['unit']}" if self.data["unit"] else ""
        groups = {LOOKS["combined"]: range(len(at))}
        return Points(at, range(len(at)), groups, f"times {self.data['gain']}", f"loss of {self.data['measure']}{unit}")

    @property
    def _points(self) -> Sequence[Mapping[str, Any]]:
        points: Sequence[Mapping[str, Any]] = self.data["points"]
        return points

    def _kept(self, name: str, caption: str) -> list[tuple[Path, str]]:
        path = self.folder / name
        return [(path, caption)] if path.exists() else []


def open_study(path: Path) -> StudyFront:
    """Raises ValueError for a file that holds no points of a study."""
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or not data.get("points"):
        raise ValueError(f"{path} holds no points of a study")
    return StudyFront(path.parent, data)
