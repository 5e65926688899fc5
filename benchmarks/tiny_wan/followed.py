"""How much of what their prompts say tiny Wan's videos show, measured on the pixels: colour, background, motion.

    python -m benchmarks.tiny_wan.followed [--out benchmarks/results/tiny_wan] [--prompts 24] [--guidance 5]

Prompts of a seed of their own, each with its own noise. Every pixel goes to the nearest of the colours that the prompt
states; those of the shape's colour are the shape, whose middle and area over the frames tell its motion. Rendered clips
of the same prompts stand beside the models' videos: what they reach is the most that the measures can see. Writes
followed.json and followed.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.regime.study_page import shown
from benchmarks.tiny_flux.scenes import COLOURS
from benchmarks.tiny_wan.scenes import DIRECTIONS, GROWTH, MOTIONS, Clip, sample_clip
from ralu_cache import accelerate
from ralu_cache.models.embedded import TINY_WAN
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.quality.likeness import psnr
from ralu_cache.report.table import Table

STEPS, SEED, FIRST_SEED = 50, 20261130, 700
NEAR = 0.3  # of the RGB cube's side: how far a pixel may be from its colour
SEEN = 0.02  # share of the pixels that a shape has at least
MOVED, GREW = 0.06, 1.25  # of the picture's side over all frames; of the area
ASPECTS = ("colour", "background", "motion")
Video = NDArray[np.floating]
"""(F, Y, X, 3) in [0, 1]"""


@dataclass(frozen=True)
class Method:
    """steps: of the call."""

    spatial: str | None = None
    guidance: str | None = None
    steps: int = STEPS


METHODS: Mapping[str, Method] = {
    "full": Method(),
    "11 plain steps": Method(steps=11),
    "6 plain steps": Method(steps=6),
    "full, guided early": Method(guidance="early"),
    "6 plain steps, guided early": Method(guidance="early", steps=6),
    "ralu-4x": Method("ralu-4x"),
    "ralu-4x, guided early": Method("ralu-4x", "early"),
    "ralu-8x": Method("ralu-8x"),
    "ralu-12x": Method("ralu-12x"),
}


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


def clips(count: int) -> list[Clip]:
    rng = np.random.default_rng(SEED)
    return [sample_clip(rng) for _ in range(count)]


def draw(pipe: Any, method: Method, chosen: Sequence[Clip], guidance: float) -> tuple[NDArray[np.float32], float]:
    """Videos (B, F, Y, X, 3) of the clips' prompts, and how many times fewer FLOPs than 50 guided steps they cost."""
    given = dict(TINY_WAN.arguments) | {"guidance_scale": guidance, "num_inference_steps": method.steps}
    generators = [torch.Generator().manual_seed(FIRST_SEED + index) for index in range(len(chosen))]
    with accelerate(pipe, spatial=method.spatial, guidance=method.guidance) as handle:
        videos: NDArray[np.float32] = pipe(
            [clip.prompt for clip in chosen], negative_prompt=[""] * len(chosen), generator=generators,
            output_type="np", **given,
        ).frames  # fmt: skip
        report = handle.report
    spared = 1.0 if report is None else report.baseline_flops / report.flops
    return videos, STEPS / method.steps * spared


def row(videos: Sequence[Video], full: Sequence[Video], chosen: Sequence[Clip], ratio: float) -> dict[str, Any]:
    """What is kept of one method: each aspect of each video, likeness to the full run, and the cost."""
    each = [followed(video, clip) for video, clip in zip(videos, chosen, strict=True)]
    likeness = [float(np.minimum(psnr(a, b), 100).mean()) for a, b in zip(videos, full, strict=True)]
    return {"ratio": round(ratio, 2), "psnr": np.round(likeness, 1).tolist()} | {
        aspect: [values[aspect] for values in each] for aspect in ASPECTS
    }


def table(rows: Mapping[str, Mapping[str, Any]], guidance: float) -> str:
    """The Markdown page."""
    count = len(rows["full"]["colour"])
    lines = [
        "# What tiny Wan's videos show of their prompts", "",
        f"{count} prompts that nothing was chosen on, guidance {guidance:g}, measured on the pixels; in brackets 95 %",
        "bootstrap intervals. By `python -m benchmarks.tiny_wan.followed`; see there.", "",
    ]  # fmt: skip
    cells = []
    for name, found in rows.items():
        like = "" if name in ("rendered", "full") else f"{np.mean(found['psnr']):.1f} dB"
        ratio = "" if name == "rendered" else f"{found['ratio']:.1f}x"
        cells.append([name, ratio, *(shown(bootstrap(found[aspect]), 0) for aspect in ASPECTS), like])
    titles = ("method", "fewer FLOPs", "shape's colour, %", "background, %", "motion, %", "likeness, PSNR")
    return "\n".join([*lines, Table(titles, cells).markdown()]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_wan"))
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    chosen = clips(options.prompts)
    pipe = TINY_WAN.load()
    pipe.set_progress_bar_config(disable=True)
    rendered = [clip.frames() / 255 for clip in chosen]
    rows = {"rendered": row(rendered, rendered, chosen, 1.0)}
    full: NDArray[np.float32] | None = None
    for name, method in tqdm(METHODS.items(), disable=None):
        videos, ratio = draw(pipe, method, chosen, options.guidance)
        full = videos if full is None else full
        rows[name] = row([*videos], [*full], chosen, ratio)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "followed.json").write_text(json.dumps(rows) + "\n")
    (options.out / "followed.md").write_text(table(rows, options.guidance))
    print(table(rows, options.guidance))


if __name__ == "__main__":
    main()
