"""What RALU and caching keep of tiny Wan's full run: likeness, and smoothness over time, of each method.

    python -m benchmarks.tiny_wan.methods [--out benchmarks/results/tiny_wan] [--prompts 12] [--wan FOLDER]

Guided, 50 steps asked for, prompts of the training's grammar from a seed of their own, each with its own noise. PSNR
and SSIM are means over the frames, to the full run of the same noise; ± is the standard error over the videos. Jitter:
the mean squared second difference over time of the pixels, relative to the full run's; what flickers has more. Motion
spectrum: how far the spectrum over time of what changes from frame to frame lies from the full run's, in dB, mean over
frequencies and videos; 0 is as smooth, at every pace, whatever moves where. Writes methods.json and methods.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.tiny_wan.scenes import sample_clip
from ralu_cache import RALU, accelerate
from ralu_cache.models.embedded import TINY_WAN
from ralu_cache.quality.likeness import psnr, ssim
from ralu_cache.report.table import Table

STEPS, SEED = 50, 2026
STILL = 1e-6  # power of a thousandth of the brightness, below what 8 bits show
STACKED = "taylorseer:5/2/2,first=1,compute_stage_end=false"


def ralu(**choices: Any) -> RALU:
    """The plan of "ralu-4x" with some choices of its own."""
    return RALU(steps=(5, 6, 7), ratio=0.3, **choices)


METHODS: dict[str, tuple[Any, Any]] = {
    "ralu-4x": ("ralu-4x", None),
    "ralu-4x, regions_over_time shared": (ralu(regions_over_time="shared"), None),
    "ralu-4x, positions fine": (ralu(positions="fine"), None),
    "ralu-4x, ends 0.3, 0.45": (ralu(ends=(0.3, 0.45, 1.0)), None),
    "ralu-4x as published": (RALU.paper("ralu-4x"), None),
    "ralu-7x": ("ralu-7x", None),
    "+seacache:0.2": (None, "seacache:0.2"),
    "+taylorseer:5": (None, "taylorseer:5"),
    "ralu-4x+seacache:0.4": ("ralu-4x", "seacache:0.4"),
    f"ralu-4x+{STACKED}": ("ralu-4x", STACKED),
}
PLAIN = (18, 11, 7)


@dataclass(frozen=True)
class Row:
    """One method; `flop_ratio`: how many times fewer FLOPs than the full run."""

    method: str
    steps: int
    flop_ratio: float
    psnr: float
    psnr_error: float
    ssim: float
    jitter: float
    motion_spectrum: float


class Lab:
    """A pipeline, its prompts, and the noise of each. steps: of the full run, and asked of every other."""

    def __init__(self, folder: Path, prompts: int, steps: int = STEPS) -> None:
        self.steps = steps
        self.pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        rng = np.random.default_rng(SEED)
        self.prompts = [sample_clip(rng).prompt for _ in range(prompts)]

    def videos(self, steps: int) -> NDArray[np.float32]:
        """(B, F, Y, X, 3) in [0, 1]."""
        arguments: dict[str, Any] = dict(TINY_WAN.arguments)
        drawn: NDArray[np.float32] = self.pipe(
            self.prompts, negative_prompt=[""] * len(self.prompts), num_inference_steps=steps, output_type="np",
            generator=[torch.Generator().manual_seed(index) for index in range(len(self.prompts))], **arguments,
        ).frames  # fmt: skip
        return drawn


def compare(method: str, steps: int, ratio: float, videos: NDArray[Any], full: NDArray[Any]) -> Row:
    """The figures of one method's videos."""
    values = np.array([psnr(video, wanted) for video, wanted in zip(videos, full, strict=True)]).mean(1)
    likeness = [ssim(video, wanted) for video, wanted in zip(videos, full, strict=True)]
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    jitter = float(np.square(np.diff(videos, 2, 1)).mean() / np.square(np.diff(full, 2, 1)).mean())
    apart = [spectrum_distance(video, wanted) for video, wanted in zip(videos, full, strict=True)]
    quality = float(values.mean()), error, float(np.mean(likeness))
    return Row(method, steps, ratio, *quality, jitter, float(np.mean(apart)))


def motion_spectrum(video: NDArray[Any]) -> NDArray[np.float64]:
    """Power of the differences between neighbouring frames (F, Y, X, 3) at each frequency over time, mean over pixels.

    Frequencies 0 to half a cycle a frame, F // 2 of them for F - 1 differences, or one more.
    """
    differences = np.diff(np.asarray(video, np.float64), axis=0)
    power: NDArray[np.float64] = np.square(np.abs(np.fft.rfft(differences, axis=0))).mean((1, 2, 3))
    return power


def spectrum_distance(video: NDArray[Any], full: NDArray[Any]) -> float:
    """Mean over frequencies of |10 log10| of the ratio of both videos' `motion_spectrum`, dB."""
    mine, wanted = (motion_spectrum(each) + STILL for each in (video, full))
    return float(np.abs(10 * np.log10(mine / wanted)).mean())


def measure(lab: Lab, methods: Mapping[str, tuple[Any, Any]], plain: tuple[int, ...]) -> list[Row]:
    """All methods, and plain runs of fewer steps."""
    full = lab.videos(lab.steps)
    rows = []
    for name, (spatial, temporal) in tqdm(methods.items()):
        with accelerate(lab.pipe, spatial, temporal) as handle:
            videos = lab.videos(lab.steps)
        assert handle.report is not None
        rows.append(compare(name, len(handle.report.steps), handle.report.flop_ratio, videos, full))
    for steps in plain:
        rows.append(compare(f"{steps} plain steps", steps, lab.steps / steps, lab.videos(steps), full))
    return rows


def table(rows: list[Row]) -> str:
    """One Markdown line a method."""
    titles = ("method", "steps", "fewer FLOPs", "PSNR to full", "SSIM", "jitter", "motion spectrum")
    cells = [
        (row.method, str(row.steps), f"{row.flop_ratio:.2f}x", f"{row.psnr:.1f} ± {row.psnr_error:.1f} dB",
         f"{row.ssim:.3f}", f"{row.jitter:.2f}x", f"{row.motion_spectrum:.2f} dB")
        for row in rows
    ]  # fmt: skip
    return Table(titles, cells).markdown() + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_wan"))
    parser.add_argument("--wan", type=Path, default=TINY_WAN.folder, help="a saved pipeline (the shipped one)")
    parser.add_argument("--prompts", type=int, default=12)
    options = parser.parse_args(arguments)
    rows = measure(Lab(options.wan, options.prompts), METHODS, PLAIN)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "methods.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    text = f"{table(rows)}\nBy `python -m benchmarks.tiny_wan.methods --prompts {options.prompts}`; see there.\n"
    (options.out / "methods.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
