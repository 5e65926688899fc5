"""Honest evaluation of tiny Wan: held-out losses, what its autoencoder keeps, film strips of guided samples.

    python -m benchmarks.tiny_wan.evaluate [--wan FOLDER] [--out held_out.json] [--samples samples.png]

The clips come from a seed that training never uses; noise and levels are fixed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, WanPipeline
from PIL import Image

from benchmarks.tiny_flux.evaluate import HELD_OUT_SEED, LEVELS, NOISE_SEED
from benchmarks.tiny_wan.autoencoder import frame_latents, pair_frames, to_video
from benchmarks.tiny_wan.latents import encode_clips
from benchmarks.tiny_wan.network import TokenVelocity
from benchmarks.tiny_wan.scenes import sample_clip
from benchmarks.tiny_wan.task import LATENT_FRAMES, place
from ralu_cache.models.embedded import TINY_FLUX, TINY_WAN
from ralu_cache.report.videos import still, to_images

STEPS = 50
PROMPTS = (
    "a red circle moving right on a blue background",
    "a yellow square moving down on a purple background",
    "a white ring growing on a green background",
    "a pink cross moving left on a black to cyan gradient background",
    "a green triangle moving up on a white background",
    "an orange circle standing still on a black background",
    "a blue square shrinking on a yellow background",
    "a cyan ring moving down on a red to orange gradient background",
    "a black cross moving right on a pink and white vertical striped background",
    "a purple triangle growing on a cyan background",
    "a white circle moving up on an orange and red horizontal striped background",
    "a red square moving left on a green background",
)


@torch.no_grad()
def held_out_losses(pipe: WanPipeline, clips: int) -> dict[str, dict[str, float]]:
    """Mean squared velocity error per kind of tokens and noise level, every token in its own frame."""
    flux = AutoencoderKL.from_pretrained(TINY_FLUX.folder / "vae", dtype=torch.float32)
    rng = np.random.default_rng(HELD_OUT_SEED)
    encoded = encode_clips([sample_clip(rng) for _ in range(clips)], flux, (pipe.tokenizer, pipe.text_encoder))
    network = TokenVelocity(pipe.transformer, torch.float32)
    losses = {}
    for kind in ("half", "full", "mixed"):
        placed = place(kind, encoded["half"], encoded["full"], True, np.random.default_rng(NOISE_SEED))
        noise = torch.randn(placed.clean.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        row = {}
        for sigma in LEVELS:
            noisy, levels = torch.lerp(placed.clean, noise, sigma), torch.full((25,), sigma)
            missed = [
                network(x, words, levels[: len(x)], placed.positions) - velocity
                for x, words, velocity in zip(
                    noisy.split(25), encoded["words"].split(25), (noise - placed.clean).split(25), strict=True
                )
            ]
            row[str(sigma)] = round(torch.cat(missed).square().mean().item(), 4)
        losses[kind] = row | {"mean": round(float(np.mean(list(row.values()))), 4)}
    return losses


@torch.no_grad()
def autoencoder_psnr(pipe: WanPipeline, clips: int) -> dict[str, float]:
    """PSNR in dB of held-out clips that were decoded from their own encoding, and from tiny FLUX's latents."""
    flux = AutoencoderKL.from_pretrained(TINY_FLUX.folder / "vae", dtype=torch.float32)
    rng = np.random.default_rng(HELD_OUT_SEED)
    videos = np.stack([sample_clip(rng).frames() for _ in range(clips)])
    shown = to_video(videos)
    latents = {
        "own encoder": pipe.vae.encode(shown).latent_dist.mode(),
        "tiny FLUX's latents": pair_frames(frame_latents(flux, videos)),
    }
    errors = {name: (pipe.vae.decode(z).sample - shown).square().mean().item() for name, z in latents.items()}
    return {name: round(10 * float(np.log10(4 / error)), 2) for name, error in errors.items()}


def samples(pipe: WanPipeline, prompts: tuple[str, ...] = PROMPTS, steps: int = STEPS) -> np.ndarray:
    """Guided videos (B, F, Y, X, 3) in [0, 1], each from its own generator."""
    arguments: dict[str, Any] = dict(TINY_WAN.arguments)
    videos = [
        pipe(
            prompt, negative_prompt="", num_inference_steps=steps, output_type="np",
            generator=torch.Generator().manual_seed(index), **arguments,
        ).frames[0]
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
    return np.stack(videos)


def strips(videos: np.ndarray, columns: int = 2, scale: int = 2) -> Image.Image:
    """A film strip of each video, a frame for each latent one."""
    rows = [np.pad(still(video, LATENT_FRAMES), ((1, 1), (2, 2), (0, 0)), constant_values=1.0) for video in videos]
    sheet = np.concatenate([np.concatenate(rows[i : i + columns], 1) for i in range(0, len(rows), columns)])
    return to_images(sheet[None], scale)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wan", type=Path, default=TINY_WAN.folder, help="a saved pipeline (the shipped one)")
    parser.add_argument("--out", type=Path, help="write the losses here (JSON)")
    parser.add_argument("--samples", type=Path, help="write film strips of guided samples here (PNG)")
    parser.add_argument("--clips", type=int, default=100, help="number of held-out clips for the losses")
    options = parser.parse_args()
    pipe = WanPipeline.from_pretrained(options.wan, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    found = {"losses": held_out_losses(pipe, options.clips), "autoencoder_psnr": autoencoder_psnr(pipe, 24)}
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    if options.samples:
        strips(samples(pipe)).save(options.samples, optimize=True)


if __name__ == "__main__":
    main()
