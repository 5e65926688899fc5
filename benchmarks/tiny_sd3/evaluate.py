"""Honest evaluation of tiny SD3 beside tiny FLUX: held-out losses, attribute accuracy, a grid of guided samples.

    python -m benchmarks.tiny_sd3.evaluate [--sd3 FOLDER] [--out losses.json] [--grid grid.png]

The scenes come from a seed that training never uses; noise and levels are fixed and the same for both models, every
token in its own frame. Attribute accuracy is that of the scene classifier on guided samples, in percent.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.tiny_flux.evaluate import HELD_OUT_SEED, LEVELS, NOISE_SEED, PROMPTS
from benchmarks.tiny_flux.evaluate import velocity as flux_velocity
from benchmarks.tiny_flux.latents import encode_scenes
from benchmarks.tiny_flux.pipeline import load_text_models
from benchmarks.tiny_flux.scenes import sample_scene
from benchmarks.tiny_sd3.distil import Placed, place
from benchmarks.tiny_sd3.network import TokenVelocity
from benchmarks.tiny_sd3.parts import encode_prompts
from ralu_cache.models.embedded import TINY_FLUX, TINY_SD3
from ralu_cache.quality.attributes import attribute_accuracy

GUIDED_STEPS = 28
Velocity = Callable[[Tensor, float, Placed], Tensor]


@torch.no_grad()
def held_out_losses(scenes: int, flux: Any, sd3: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Mean squared velocity error of both models per kind of tokens and noise level."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    drawn = [sample_scene(rng) for _ in range(scenes)]
    encoded = encode_scenes(drawn, flux.vae, load_text_models(TINY_FLUX.folder))
    words, pooled = encode_prompts(sd3, [scene.prompt for scene in drawn])
    network = TokenVelocity(sd3.transformer)

    def of_flux(noisy: Tensor, sigma: float, placed: Placed) -> Tensor:
        ids = torch.cat([torch.zeros(len(placed.positions), 1), placed.positions], 1)
        return flux_velocity(flux, noisy, encoded["words"], encoded["pooled"], sigma, ids)

    def of_sd3(noisy: Tensor, sigma: float, placed: Placed) -> Tensor:
        levels = torch.full((len(noisy),), sigma)
        return network(noisy, words, pooled, levels, placed.positions, placed.side)

    losses: dict[str, dict[str, dict[str, float]]] = {}
    models: dict[str, Velocity] = {TINY_FLUX.name: of_flux, TINY_SD3.name: of_sd3}
    for kind in ("half", "full", "mixed"):
        placed = place(kind, encoded["half"], encoded["full"], True, np.random.default_rng(NOISE_SEED))
        noise = torch.randn(placed.clean.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        for name, velocity in models.items():
            row = {}
            for sigma in LEVELS:
                noisy = torch.lerp(placed.clean, noise, sigma)
                missed = velocity(noisy, sigma, placed) - (noise - placed.clean)
                row[str(sigma)] = round(missed.square().mean().item(), 4)
            losses.setdefault(name, {})[kind] = row | {"mean": round(float(np.mean(list(row.values()))), 4)}
    return losses


def samples(pipe: Any, arguments: dict[str, Any], prompts: list[str], seed: int = 0) -> np.ndarray:
    """Guided samples (B, 128, 128, 3) in [0, 1], each from its own generator."""
    pictures = [
        pipe(
            prompt, negative_prompt="", height=128, width=128, num_inference_steps=GUIDED_STEPS, output_type="np",
            generator=torch.Generator().manual_seed(seed + index), **arguments,
        ).images[0]
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
    return np.stack(pictures)


def grid(pictures: np.ndarray, columns: int = 8) -> np.ndarray:
    """Pictures (B, Y, X, 3), B a multiple of the columns, as one (8 bits)."""
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    return (np.concatenate(rows) * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd3", type=Path, default=TINY_SD3.folder, help="a saved pipeline (the shipped one)")
    parser.add_argument("--out", type=Path, help="write the losses and accuracies here (JSON)")
    parser.add_argument("--grid", type=Path, help="write the guided samples here (PNG), tiny FLUX above tiny SD3")
    parser.add_argument("--scenes", type=int, default=200, help="number of held-out scenes for the losses")
    options = parser.parse_args()
    from diffusers import StableDiffusion3Pipeline

    pipes = {
        TINY_FLUX: TINY_FLUX.load(),
        TINY_SD3: StableDiffusion3Pipeline.from_pretrained(options.sd3, dtype=torch.float32),
    }
    found: dict[str, Any] = {"losses": held_out_losses(options.scenes, *pipes.values()), "attributes": {}}
    grids = []
    for model, pipe in pipes.items():
        pipe.set_progress_bar_config(disable=True)
        pictures = samples(pipe, dict(model.arguments), list(PROMPTS))
        grids.append(grid(pictures))
        found["attributes"][model.name] = round(float(np.mean(attribute_accuracy(pictures, PROMPTS))), 1)
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    if options.grid:
        Image.fromarray(np.concatenate(grids)).save(options.grid, optimize=True)


if __name__ == "__main__":
    main()
