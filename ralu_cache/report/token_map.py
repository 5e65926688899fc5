"""Which tokens a run computed, and when: a picture for each stage with its grid of tokens, its steps below."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ralu_cache.report.figures import COLOURS, INK, as_pictures, plain, save
from ralu_cache.report.record import RegionMask, RunRecord, StageRecord
from ralu_cache.report.steps import StepRecord
from ralu_cache.report.timeline import ROWS, WORK, work

PICTURE = 2.5  # inches of a stage's picture


def save_token_map(report: RunRecord, path: str | PathLike[str], image: Any = None, sample: int = 0) -> None:
    """Draws the stages of one sample from left to right.

    Above, the finished picture under the grid of tokens that the stage computed: large cells are coarse tokens of 2x2
    fine ones. Below, a bar for each step, filled by the share of these tokens that was computed in it.

    image: a PIL image or a (Y, X, 3) array, of a video its frames one below the other; blank if None.
    """
    stages, (rows, columns) = report.stages, report.size
    if not stages:
        raise ValueError("this report has no steps yet; draw first")
    pictures = as_pictures(image)
    shown = pictures[min(sample, len(pictures) - 1)] if pictures else np.ones((rows, columns, 3))
    figure = Figure(figsize=(PICTURE * len(stages) + 0.4, PICTURE * rows / columns + 1.5), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, height_ratios=(PICTURE * rows / columns, 0.55))
    masks, start = iter(report.regions), 0
    for column, stage in zip(axes.T, stages, strict=True):
        refined = _refined(stage, (rows, columns), next(masks)[sample] if stage.kind == "mixed" else None)
        _draw_grid(column[0], shown, refined, COLOURS[stage.kind])
        column[0].set_title(_title(stage), fontsize=8.5, color=COLOURS[stage.kind])
        _draw_steps(column[1], report.steps[start : start + stage.steps], start, COLOURS[stage.kind])
        start += stage.steps
    axes[1, 0].set_ylabel("computed", fontsize=8, color=INK)
    save(figure, path)


def _title(stage: StageRecord) -> str:
    steps = f"{stage.steps} step{'s' if stage.steps > 1 else ''}"
    return f"{stage.kind}: {steps} of {stage.tokens} tokens\nsigma {stage.sigma_start:.2f} to {stage.sigma_end:.2f}"


def _refined(stage: StageRecord, size: tuple[int, int], mask: RegionMask | None) -> RegionMask:
    """(rows / 2, columns / 2): True where a cell's four fine tokens are computed."""
    if mask is not None:
        return mask
    return np.full((-(-size[0] // 2), -(-size[1] // 2)), stage.kind == "fine")


def _draw_grid(axis: Axes, picture: NDArray[np.float64], refined: RegionMask, colour: str) -> None:
    """The picture at the grid's own resolution, and lines around each token."""
    high, wide = picture.shape[0] / refined.shape[0], picture.shape[1] / refined.shape[1]
    axis.imshow(0.55 * _as_seen(picture, refined) + 0.45, interpolation="nearest")
    lines = []
    for (row, column), fine in np.ndenumerate(refined):
        left, top, right, bottom = column * wide, row * high, (column + 1) * wide, (row + 1) * high
        lines += [((left, top), (right, top)), ((left, top), (left, bottom))]
        if fine:
            middle, centre = (top + bottom) / 2, (left + right) / 2
            lines += [((left, middle), (right, middle)), ((centre, top), (centre, bottom))]
    right, bottom = refined.shape[1] * wide, refined.shape[0] * high
    lines += [((0, bottom), (right, bottom)), ((right, 0), (right, bottom))]
    axis.add_collection(LineCollection(list(np.array(lines) - 0.5), colors=colour, linewidths=0.6))
    axis.set(xlim=(-1, picture.shape[1]), ylim=(picture.shape[0], -1), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _as_seen(picture: NDArray[np.float64], refined: RegionMask) -> NDArray[np.float64]:
    """Cells that are not refined show the mean of their pixels."""
    shown = picture.copy()
    heights, widths = (np.linspace(0, n, cells + 1).round().astype(int) for n, cells in
                       zip(picture.shape[:2], refined.shape, strict=True))  # fmt: skip
    for row, column in np.argwhere(~refined):
        cell = slice(heights[row], heights[row + 1]), slice(widths[column], widths[column + 1])
        shown[cell] = picture[cell].mean((0, 1))
    return shown


def _draw_steps(axis: Axes, steps: Sequence[StepRecord], first: int, colour: str) -> None:
    """A bar a step; what is hollow was reused."""
    places = np.arange(first, first + len(steps)) + 0.5
    computed = [work(step)[0] for step in steps]
    rows = [work(step)[1] for step in steps]
    axis.bar(places, 1.0, width=0.82, color="none", edgecolor="#c9cdd6", lw=0.7)
    axis.bar(places, computed, width=0.82, color=colour)
    axis.bar(places, rows, bottom=computed, width=0.82, color=WORK[ROWS])
    axis.set(xlim=(first, first + len(steps)), ylim=(0, 1.05), yticks=(0, 1), yticklabels=("0%", "100%"))
    axis.locator_params(axis="x", integer=True, nbins=min(len(steps), 8))
    axis.set_xlabel("step", fontsize=8, color=INK)
    plain(axis)
    axis.tick_params(labelsize=7)
