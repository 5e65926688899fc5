"""What all figures share, and pictures: a labelled grid of them, and refined regions drawn over them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ralu_cache.report.record import RegionMask

COLOURS = {"coarse": "#e09f3e", "mixed": "#2a9d8f", "fine": "#3d5a98"}
INK = "#30343f"
CELL = 1.6  # inches of one picture in a grid


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
