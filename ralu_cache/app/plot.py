"""Points of speed against quality as a picture that can be clicked."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ralu_cache.report.figures import INK, plain
from ralu_cache.sweep.groups import Look

INCHES, DPI = (7.2, 4.4), 110
BORDER = (0.1, 0.13, 0.87, 0.8)  # of the axes: left, bottom, width, height as shares of the figure


@dataclass(frozen=True, eq=False)
class Points:
    """at: (n, 2), gain and quality. front: those that nothing beats, by gain. groups: which have which look."""

    at: NDArray[np.float64]
    front: Sequence[int]
    groups: Mapping[Look, Sequence[int]]
    gain: str
    quality: str

    def nearest(self, x: float, y: float) -> int:
        """The point nearest to a pixel of the picture, counted from its left upper corner."""
        return int(np.hypot(*(self.pixels - (x, y)).T).argmin())

    def draw(self, chosen: int | None) -> Image.Image:
        """All of them and their front; a ring around the chosen one."""
        return self._draw(chosen)[0]

    @cached_property
    def pixels(self) -> NDArray[np.float64]:
        """(n, 2): where they are in the picture, from its left upper corner."""
        return self._draw(None)[1]

    def _draw(self, chosen: int | None) -> tuple[Image.Image, NDArray[np.float64]]:
        figure = Figure(figsize=INCHES, dpi=DPI)
        axes = figure.add_axes(BORDER)
        axes.plot(*self.at[list(self.front)].T, color=INK, lw=1)
        for look, places in self.groups.items():
            if len(places):
                group = self.at[list(places)]
                axes.plot(*group.T, look.marker, color=look.colour, ms=9, mec="white", label=look.title, ls="none")
        if chosen is not None:
            axes.plot(*self.at[chosen], "o", ms=20, mfc="none", mec="#c1272d", mew=2)
        axes.set_xlabel(self.gain, color=INK)
        axes.set_title(self.quality, fontsize=10, color=INK)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
        axes.margins(0.08)
        plain(axes)
        file = io.BytesIO()
        figure.savefig(file, dpi=DPI, facecolor="white")
        picture = Image.open(file).convert("RGB")
        return picture, axes.transData.transform(self.at) * (1, -1) + (0, picture.height)
