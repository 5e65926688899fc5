"""How much of what their prompts say tiny Wan's videos show, measured on the pixels: colour, background, motion.

Every pixel goes to the nearest of the colours that the prompt states; those of the shape's colour are the shape, whose
middle and area over the frames tell its motion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.tiny_flux.scenes import COLOURS
from benchmarks.tiny_wan.scenes import DIRECTIONS, GROWTH, MOTIONS, Clip

NEAR = 0.3  # of the RGB cube's side: how far a pixel may be from its colour
SEEN = 0.02  # share of the pixels that a shape has at least
MOVED, GREW = 0.06, 1.25  # of the picture's side over all frames; of the area
ASPECTS = ("colour", "background", "motion")
Video = NDArray[np.floating]
"""(F, Y, X, 3) in [0, 1]"""


def stated(clip: Clip) -> tuple[str, str]:
    """The shape's colour and the motion that a clip's prompt states."""
    return clip.start.colour, next(motion for motion in MOTIONS if motion in clip.prompt)


def masks(video: Video, clip: Clip) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(F, Y, X) each: the pixels of the shape, and those of neither it nor the background.

    A gradient's pixels are near the line between its two colours.
    """
    first, second = (np.array(COLOURS[name]) / 255 for name in (clip.scene.first, clip.scene.second))
    shape = np.linalg.norm(video - np.array(COLOURS[clip.start.colour]) / 255, axis=-1)
    share = np.zeros(video.shape[:-1])
    if clip.scene.background == "gradient":
        along = second - first
        share = np.clip((video - first) @ along / (along @ along), 0, 1)
    behind = np.linalg.norm(video - first - share[..., None] * (second - first), axis=-1)
    if clip.scene.background.endswith("stripes"):
        behind = np.minimum(behind, np.linalg.norm(video - second, axis=-1))
    is_shape = (shape < behind) & (shape < NEAR)
    return is_shape, ~is_shape & (behind >= NEAR)


def motion_of(mask: NDArray[np.bool_]) -> str:
    """The motion, as prompts say it, of a shape's pixels (F, Y, X)."""
    third = max(1, len(mask) // 3)
    area = mask.reshape(len(mask), -1).mean(1)
    growth = area[-third:].mean() / max(area[:third].mean(), 1e-6)
    places = np.array([[axis.mean() for axis in np.nonzero(frame)] if frame.any() else [0.0, 0.0] for frame in mask])
    down, across = (places[-third:].mean(0) - places[:third].mean(0)) / mask.shape[1]
    if max(growth, 1 / max(growth, 1e-6)) > GREW and max(abs(down), abs(across)) < 2 * MOVED:
        return next(name for name, sign in GROWTH.items() if (sign > 0) == (growth > 1))
    if max(abs(down), abs(across)) < MOVED:
        return "standing still"
    way = (int(np.sign(across)), 0) if abs(across) > abs(down) else (0, int(np.sign(down)))
    return next(name for name, direction in DIRECTIONS.items() if direction == way)


def background_shown(video: Video, clip: Clip, shape: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether nine tenths of the rest have the stated colours, both of two, and stripes lie as stated."""
    rest = ~shape
    if not rest.any() or (other & rest).sum() > 0.1 * rest.sum():
        return False
    kind = clip.scene.background
    if kind == "solid":
        return True
    first, second = (np.linalg.norm(video - np.array(COLOURS[name]) / 255, axis=-1)
                     for name in (clip.scene.first, clip.scene.second))  # fmt: skip
    nearer = (first < second) & rest
    if not 0.2 < nearer.sum() / rest.sum() < 0.8:
        return False
    if kind == "gradient":
        return True
    across, down = (np.diff(np.where(rest, nearer, 0.5), axis=axis).astype(float) for axis in (2, 1))
    return bool((np.abs(down).sum() > np.abs(across).sum()) == (kind == "hstripes"))


def followed(video: Video, clip: Clip) -> dict[str, float]:
    """100 for each aspect of the prompt that the video (F, Y, X, 3) shows, else 0."""
    shape, other = masks(video, clip)
    seen = bool((shape.reshape(len(shape), -1).mean(1) > SEEN).mean() > 0.8)
    moved = seen and motion_of(shape) == stated(clip)[1]
    return {"colour": 100.0 * seen, "background": 100.0 * background_shown(video, clip, shape, other),
            "motion": 100.0 * moved}  # fmt: skip
