"""Videos as pictures: their frames, film strips of them, and animated GIFs of several side by side.

A video is (F, Y, X, 3), a batch of videos (B, F, Y, X, 3), in [0, 1].
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

LINE, MARGIN = 12, 4  # pixels
LABEL, LABEL_LETTERS = 110, 19  # a row's label: pixels, and letters of a line of it
PALETTE = 128  # colours of a frame of a GIF
BETWEEN = 2  # pixels between rows that have labels, and between their columns


def as_frames(pictures: NDArray[Any]) -> NDArray[Any]:
    """All frames of all videos one after the other, (B F, Y, X, 3); pictures (B, Y, X, 3) as they are."""
    return pictures.reshape(-1, *pictures.shape[-3:])


def still(picture: NDArray[Any], frames: int) -> NDArray[Any]:
    """So many frames of a video, evenly spaced, beside each other: (Y, frames X, 3); a picture (Y, X, 3) as it is.

    With the number of latent frames, each frame that is shown is the last that its latent frame stands for.
    """
    if picture.ndim == 3:
        return picture
    places = np.linspace(0, len(picture) - 1, frames).round().astype(int)
    return np.concatenate(list(picture[places]), 1)


def tall(picture: NDArray[Any], frames: int) -> NDArray[Any]:
    """The same frames one below the other, (frames Y, X, 3), as the region masks of a video stand."""
    return np.concatenate(np.split(still(picture, frames), frames, 1))


def beside(mask: NDArray[Any], frames: int) -> NDArray[Any]:
    """A video's region mask (frames Y, X), whose frames stand one below the other -> (Y, frames X), as of `still`."""
    return np.concatenate(np.split(mask, frames), 1)


def latent_frames(size: tuple[int, int], picture: NDArray[Any]) -> int:
    """How many frames stand in a token grid of `size` (rows, columns), by the sides of what was drawn; a picture: 1."""
    height, width = picture.shape[-3:-1]
    return round(size[0] * width / (size[1] * height))


def to_images(video: ArrayLike, scale: int = 1) -> list[Image.Image]:
    """The frames (F, Y, X, 3) as 8-bit pictures, every pixel `scale` x `scale` times."""
    frames = (np.clip(np.asarray(video), 0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(frame.repeat(scale, 0).repeat(scale, 1)) for frame in frames]


def side_by_side(columns: Mapping[str, Sequence[Sequence[Image.Image]]], rows: Sequence[str] = ()) -> list[Image.Image]:
    """Frame for frame one picture: `columns` maps a caption to its videos from top to bottom, `rows` are their labels.

    Raises ValueError for videos that differ in size or length, or are not as many in each column.
    """
    videos = [video for column in columns.values() for video in column]
    sizes = {(len(video), video[0].size) for video in videos}
    counts = {len(column) for column in columns.values()} | ({len(rows)} if rows else set())
    if len(sizes) != 1 or len(counts) != 1:
        raise ValueError(f"videos must be alike and as many in each column; frames and sizes {sizes}, rows {counts}")
    ((length, (width, height)),), (count,) = sizes, counts
    gap, left = (BETWEEN, LABEL) if rows else (0, 0)
    top = MARGIN + LINE * max(caption.count("\n") + 1 for caption in columns)
    sheet = Image.new("RGB", (left + len(columns) * (width + gap) - gap, top + count * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(rows):
        draw.text((MARGIN, top + row * (height + gap)), textwrap.fill(label, LABEL_LETTERS), fill="black")
    for place, caption in enumerate(columns):
        draw.text((left + place * (width + gap) + MARGIN, 2), caption, fill="black", spacing=1)
    shown = [sheet.copy() for _ in range(length)]
    for place, column in enumerate(columns.values()):
        for row, video in enumerate(column):
            for frame, target in zip(video, shown, strict=True):
                target.paste(frame, (left + place * (width + gap), top + row * (height + gap)))
    return shown


def save_gif(frames: Sequence[Image.Image], path: str | PathLike[str], frames_per_second: float) -> None:
    """An animated GIF that repeats for ever, each frame in its own palette; makes the folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (frame.quantize(PALETTE, dither=Image.Dither.NONE) for frame in frames)  # dither would flicker
    first.save(target, save_all=True, append_images=others, duration=round(1000 / frames_per_second), loop=0)
