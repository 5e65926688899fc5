"""Wan 2.1 text-to-video, full and accelerated, side by side in one animated GIF.

    pip install ftfy
    python benchmarks/examples/wan.py --prompt "a red fox runs through the snow" --out out/wan.gif

Downloads the checkpoint (1.3B) and wants a GPU. Both videos are drawn with the same seed and the same scheduler: Euler
in place of the checkpoint's UniPC, whose memory of earlier steps ends where the resolution changes. Spatial stages want
a height and a width that are multiples of 32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from ralu_cache import accelerate
from ralu_cache.generate import FRAMES_PER_SECOND
from ralu_cache.report.videos import save_gif, side_by_side
from ralu_cache.sweep.methods import parse_method

CHECKPOINT = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def load(options: argparse.Namespace) -> Any:
    """The pipeline in bfloat16, its autoencoder in float32 as the model's authors have it."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline

    vae = AutoencoderKLWan.from_pretrained(options.model, subfolder="vae", dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(options.model, vae=vae, dtype=torch.bfloat16)
    shift = pipe.scheduler.config.get("flow_shift", 3.0)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return pipe.to(options.device)


def draw(pipe: Any, options: argparse.Namespace, **overrides: Any) -> tuple[list[Image.Image], float]:
    """The frames of a video, and the seconds it took."""
    call = {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "height": options.height,
        "width": options.width,
        "num_frames": options.frames,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "generator": torch.Generator().manual_seed(options.seed),
        "output_type": "pil",
    }
    start = perf_counter()
    frames = pipe(**(call | overrides)).frames[0]
    return frames, perf_counter() - start


def main(arguments: Sequence[str] | None = None, load: Callable[[argparse.Namespace], Any] = load) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CHECKPOINT)
    parser.add_argument("--prompt", default="a red fox runs through the snow")
    parser.add_argument("--negative-prompt", default="blurred, static, worst quality, subtitles")
    parser.add_argument("--spatial", default="ralu", help="as of accelerate(), or none")
    parser.add_argument("--temporal", default="seacache", help="as of accelerate(), or none")
    parser.add_argument("--guidance", default="none", help="as of accelerate(): early, early:0.65, or none")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("out/wan.gif"))
    options = parser.parse_args(arguments)
    method = parse_method(f"{options.spatial}+{options.temporal}+guidance={options.guidance}")
    pipe = load(options)
    draw(pipe, options, num_inference_steps=1)  # the first call of a shape is slower
    full, full_seconds = draw(pipe, options)
    with accelerate(pipe, **method.parts) as handle:
        fast, fast_seconds = draw(pipe, options)
    print(handle.report)
    captions = f"full, {full_seconds:.1f} s", f"{method}, {fast_seconds:.1f} s"
    save_gif(side_by_side({captions[0]: [full], captions[1]: [fast]}), options.out, FRAMES_PER_SECOND)
    print(f"{full_seconds / fast_seconds:.2f}x faster: {options.out}")


if __name__ == "__main__":
    main()
