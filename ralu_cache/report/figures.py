"""Figures: the timeline of a run, its regions over the pictures, a labelled grid of pictures (needs matplotlib)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ralu_cache.report.record import RegionMask, Report, StageRecord

try:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError("plotting needs matplotlib: pip install 'ralu-cache[plot]'") from error

Draw = Callable[[FigureBase, Mapping[str, Report]], None]
COLOURS = {"coarse": "#e09f3e", "mixed": "#2a9d8f", "fine": "#3d5a98"}
INK = "#30343f"
MAX_SAMPLES = 8  # pictures shown beside a timeline
CELL = 1.6  # inches of one picture in a grid


def save_report(
    report: Report, path: str | PathLike[str], image: Any = None, draw: Draw | None = None, height: float = 4.6
) -> None:
    """The timeline of `report` and, with `image` (PIL, array, or a list of them), its regions over the pictures.

    draw: what is drawn in the timeline's place, at least `height` inches high.
    """
    draw = draw or draw_timeline
    pictures = as_pictures(image)[:MAX_SAMPLES]
    columns = 2 if len(pictures) > 1 else len(pictures)
    shown_rows = -(-len(pictures) // columns) if pictures else 0
    width = 3.6 if len(pictures) == 1 else 2.2 * columns
    figure = Figure(figsize=(7.5 + width, max(height, 2.1 * shown_rows)), layout="constrained")
    gain = f"{report.flop_ratio:.2f}x fewer FLOPs than {report.baseline_steps} full-resolution steps"
    parts = [textwrap.shorten(part, 40, placeholder=" ...)") for part in (report.spatial, report.temporal)]
    name = " + ".join(part for part in parts if part != "none")
    timeline = {f"{name}: {gain}" if len(name) < 40 else f"{name}\n{gain}": report}
    if pictures:
        halves = figure.add_gridspec(1, 2, width_ratios=(7.5, width))
        draw(figure.add_subfigure(halves[0]), timeline)
        right = figure.add_subfigure(halves[1])
        right.suptitle("refined regions", color=INK, fontsize=10)
        axes = right.subplots(shown_rows, columns, squeeze=False).flat
        for sample, axis in enumerate(axes):
            axis.set_axis_off()
            if sample < len(pictures):
                draw_regions(axis, pictures[sample], [masks[sample] for masks in report.regions if sample < len(masks)])
    else:
        draw(figure, timeline)
    save(figure, path)


def save_timelines(reports: Mapping[str, Report], path: str | PathLike[str]) -> None:
    """One timeline per named run, side by side on common axes."""
    figure = Figure(figsize=(0.6 + 4.2 * len(reports), 4.6), layout="constrained")
    draw_timeline(figure, reports)
    save(figure, path)


def save_grid(
    rows: Mapping[str, Sequence[Any]],
    columns: Sequence[str],
    path: str | PathLike[str],
    masks: Mapping[str, Sequence[Sequence[RegionMask]]] | None = None,
) -> None:
    """Labelled pictures of one size: `rows` maps a row's label to its pictures, `columns` are the captions above.

    masks: for the rows named in it, the region masks of each picture, drawn over it.
    """
    height, width = as_pictures(next(iter(rows.values())))[0].shape[:2]
    wide = CELL * max(1.0, width / height / 2)  # film strips: wider than a picture, and less high
    figure = Figure(figsize=(wide * len(columns) + 2.0, wide * height / width * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, color=INK)
        for column, (axis, picture) in enumerate(zip(line, as_pictures(pictures), strict=True)):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            draw_regions(axis, picture, masks[label][column] if masks and label in masks else [])
    for axis, caption in zip(axes[0], columns, strict=True):
        axis.set_title(textwrap.fill(caption, 22), fontsize=7.5, color=INK)
    save(figure, path)


def draw_timeline(figure: FigureBase, reports: Mapping[str, Report]) -> None:
    """Above: sigma over the steps, stages shaded, transitions as jumps. Below: the tokens of each step."""
    axes = figure.subplots(2, len(reports), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 1.4))
    for column, (title, report) in enumerate(reports.items()):
        draw_sigmas(axes[0, column], report)
        _draw_tokens(axes[1, column], report)
        axes[0, column].set_title(title, fontsize=10, color=INK)
    axes[0, 0].set_ylabel("sigma (1 noise, 0 clean)")
    axes[1, 0].set_ylabel("tokens")


def draw_sigmas(axis: Axes, report: Report) -> None:
    """Sigma over the steps, stages shaded and named, transitions as jumps."""
    start = 0
    for number, stage in enumerate(report.stages):
        colour = COLOURS[stage.kind]
        steps = report.steps[start : start + stage.steps]
        path = [step.sigma for step in steps] + [stage.sigma_end]
        axis.axvspan(start, start + stage.steps, color=colour, alpha=0.12, lw=0)
        if number:  # the transition before this stage
            before = report.steps[start - 1].sigma_next
            axis.plot([start, start], [before, path[0]], color=INK, lw=1, ls=(0, (2, 2)))
            axis.annotate("", (start, path[0]), (start, before), arrowprops={"arrowstyle": "->", "color": INK, "lw": 1})
        axis.plot(range(start, start + len(path)), path, color=colour, lw=2, marker="o", ms=3.5)
        axis.text(start + stage.steps / 2, 1.08, _label(stage), color=colour, fontsize=8, ha="center", va="center")
        start += stage.steps
    axis.set(ylim=(-0.03, 1.17), xlim=(0, max(start, 1)), yticks=(0, 0.25, 0.5, 0.75, 1))
    plain(axis)


def _draw_tokens(axis: Axes, report: Report) -> None:
    start = 0
    for stage in report.stages:
        steps = report.steps[start : start + stage.steps]
        places = np.arange(start, start + stage.steps) + 0.5
        axis.bar(places, [step.tokens for step in steps], width=0.8, color=COLOURS[stage.kind])
        start += stage.steps
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axis)


def _label(stage: StageRecord) -> str:
    return f"{stage.kind}\n{stage.steps} step{'s' if stage.steps > 1 else ''}"


def plain(axis: Axes) -> None:
    """A frame that does not compete with what it holds."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#9aa0ac")
    axis.tick_params(colors=INK, labelsize=8)


def draw_regions(axis: Axes, picture: NDArray[np.float64], masks: Sequence[RegionMask]) -> None:
    """The picture, faded where its first mixed stage stayed coarse, with an outline around each refined region."""
    rows, columns = picture.shape[:2]
    shown = picture
    if masks:
        keep = _resize(masks[0], rows, columns)[..., None]
        shown = np.where(keep, picture, 0.3 * picture + 0.7)
    axis.imshow(shown, interpolation="nearest", extent=(0, columns, rows, 0))
    axis.set(xlim=(-1, columns + 1), ylim=(rows + 1, -1))
    for mask in masks:
        _outline(axis, mask, rows, columns)


def _outline(axis: Axes, mask: RegionMask, rows: int, columns: int) -> None:
    """Lines along the borders between refined and coarse cells."""
    framed = np.pad(mask, 1)
    high, wide = rows / mask.shape[0], columns / mask.shape[1]
    level = [
        ((column - 1) * wide, row * high, column * wide, row * high)
        for row, column in np.argwhere(framed[1:] != framed[:-1])
    ]
    upright = [
        (column * wide, (row - 1) * high, column * wide, row * high)
        for row, column in np.argwhere(framed[:, 1:] != framed[:, :-1])
    ]
    segments = list(np.reshape(level + upright, (-1, 2, 2)))
    axis.add_collection(LineCollection(segments, colors="black", linewidths=1.3, capstyle="projecting"))


def _resize(mask: RegionMask, rows: int, columns: int) -> RegionMask:
    """Nearest neighbour, to any size."""
    cells = [np.arange(n) * cells // n for n, cells in ((rows, mask.shape[0]), (columns, mask.shape[1]))]
    return mask[np.ix_(*cells)]


def as_pictures(image: Any) -> list[NDArray[np.float64]]:
    """None, one PIL image or array, or a list or batch of them -> arrays (Y, X, 3) in [0, 1]."""
    if image is None:
        return []
    if isinstance(image, list | tuple):
        return [_as_array(one) for one in image]
    array = np.asarray(image)
    return [_as_array(one) for one in array] if array.ndim == 4 else [_as_array(array)]


def _as_array(image: Any) -> NDArray[np.float64]:
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise ValueError(f"expected a PIL image or a (Y, X, 3) array, got shape {array.shape}")
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return np.clip(array[..., :3].astype(np.float64) / scale, 0, 1)


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Writes the figure; makes the folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=140, facecolor="white")
