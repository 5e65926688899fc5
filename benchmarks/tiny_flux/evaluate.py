"""Honest evaluation of a tiny pipeline: held-out rectified-flow losses, and a grid of guided samples.

The scenes come from a seed that training never uses; noise and levels are fixed, so two sets of weights see the same
problems. Run: python -m benchmarks.tiny_flux.evaluate FOLDER [FOLDER ...] --out losses.json --grid grid.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from benchmarks.tiny_flux.latents import encode_scenes
from benchmarks.tiny_flux.pipeline import load_text_models
from benchmarks.tiny_flux.scenes import sample_scene
from benchmarks.tiny_flux.tokens import COARSE, FINE, MixedTokens, position_ids

HELD_OUT_SEED, NOISE_SEED = 987654321, 5
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
GUIDANCE = 3.0
PROMPTS = (
    "a red circle on a blue and white striped background",
    "a yellow star on a purple and black dotted background",
    "a large pink heart in the center on a white to cyan gradient background",
    "a green triangle on the left on an orange and yellow checkered background",
    "a small white ring at the top on a plain blue background",
    "a black cross on the right on a cyan and white diagonal striped background",
    "a blue square and a red star on a green and yellow horizontal striped background",
    "an orange ring and a purple heart on a white and pink vertical striped background",
    "a large orange circle in the center on a plain black background",
    "a large white star in the center on a blue background",
    "a cyan circle at the bottom on a red and pink checkered background",
    "a purple square on the left on a yellow to white gradient background",
    "a small red heart on the right on a green and white dotted background",
    "a large yellow triangle on a black and purple diagonal striped background",
    "a pink star at the top on a plain green background",
    "a white circle and a black triangle on an orange background",
)


def velocity(pipeline: FluxPipeline, x: Tensor, words: Tensor, pooled: Tensor, sigma: float, ids: Tensor) -> Tensor:
    """The transformer's prediction for noisy tokens (B, N, 16), in batches of 25."""
    pieces = [
        pipeline.transformer(
            hidden_states=x[i : i + 25],
            encoder_hidden_states=words[i : i + 25],
            pooled_projections=pooled[i : i + 25],
            timestep=torch.full((len(x[i : i + 25]),), sigma),
            img_ids=ids,
            txt_ids=torch.zeros(words.shape[1], 3),
            return_dict=False,
        )[0]
        for i in range(0, len(x), 25)
    ]
    return torch.cat(pieces)


@torch.no_grad()
def held_out_losses(pipeline: FluxPipeline, folder: Path, scenes: int) -> dict[str, dict[str, float]]:
    """Mean squared velocity error per noise level at half and full size and for one mixed token set (doubled frame)."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    encoded = encode_scenes([sample_scene(rng) for _ in range(scenes)], pipeline.vae, load_text_models(folder))
    mixed = MixedTokens.refine(np.random.default_rng(NOISE_SEED).permutation(COARSE**2)[:24])
    problems = {
        "half": (encoded["half"], position_ids(COARSE)),
        "full": (encoded["full"], position_ids(FINE)),
        "mixed": (mixed.gather(encoded["half"], encoded["full"]), mixed.positions(doubled=True)),
    }
    losses = {}
    for kind, (clean, ids) in problems.items():
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        row = {}
        for sigma in LEVELS:
            noisy = (1 - sigma) * clean + sigma * noise
            predicted = velocity(pipeline, noisy, encoded["words"], encoded["pooled"], sigma, ids)
            row[str(sigma)] = round((predicted - (noise - clean)).square().mean().item(), 4)
        losses[kind] = row | {"mean": round(float(np.mean(list(row.values()))), 4)}
    return losses


def guided_grid(pipeline: FluxPipeline, steps: int = 28, columns: int = 8) -> Image.Image:
    """The sixteen fixed prompts at 128 pixels with true CFG, seed 0 each."""
    images = [
        pipeline(
            prompt,
            negative_prompt="",
            true_cfg_scale=GUIDANCE,
            height=128,
            width=128,
            num_inference_steps=steps,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        for prompt in PROMPTS
    ]
    grid = Image.new("RGB", (128 * columns, 128 * -(-len(images) // columns)))
    for i, image in enumerate(images):
        grid.paste(image, (128 * (i % columns), 128 * (i // columns)))
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="saved pipelines; their grids are stacked in this order")
    parser.add_argument("--out", type=Path, help="write the held-out losses here (JSON)")
    parser.add_argument("--grid", type=Path, help="write the guided samples here (PNG)")
    parser.add_argument("--scenes", type=int, default=200, help="number of held-out scenes")
    parser.add_argument("--names", nargs="+", help="names for the folders in the JSON (default: their paths)")
    options = parser.parse_args()
    names = options.names or [str(folder) for folder in options.folders]
    losses, grids = {}, []
    for name, folder in zip(names, options.folders, strict=True):
        pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        if options.out:
            losses[name] = held_out_losses(pipeline, folder, options.scenes)
            print(name, json.dumps(losses[name]), flush=True)
            options.out.write_text(json.dumps(losses, indent=2) + "\n")
        if options.grid:
            grids.append(np.asarray(guided_grid(pipeline)))
            Image.fromarray(np.concatenate(grids)).save(options.grid, optimize=True)


if __name__ == "__main__":
    main()
