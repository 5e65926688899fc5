"""Pictures for the scene classifier: renders, renders that went through the model's autoencoder, and augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.tiny_flux.render import render
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache.quality.scene_prompts import ATTRIBUTES, read_prompt

TWO_SHAPES = 0.35  # share of scenes with two shapes in training: more than in the grammar, they have more to tell


@dataclass(frozen=True)
class Pool:
    """Pictures (N, 128, 128, 3) uint8 and what their prompts state, as `targets` gives it (N, sum of classes)."""

    pictures: NDArray[np.uint8]
    targets: Tensor

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless shuffled batches: pictures (size, 3, 128, 128) in [-1, 1], augmented, and their targets."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.pictures), generator=generator)
            for index in order[: len(order) // size * size].split(size):
                pictures = torch.from_numpy(self.pictures[index.numpy()]).permute(0, 3, 1, 2).float() / 255
                yield augment(pictures, generator) * 2 - 1, self.targets[index]


def render_pool(count: int, decoded: int, vae: Any, seed: int) -> Pool:
    """`count` rendered scenes, and of the first `decoded` also what the autoencoder makes of them."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, TWO_SHAPES) for _ in range(count)]
    renders = np.stack([render(scene) for scene in tqdm(scenes, desc="rendering", mininterval=10)])
    soft = (round_trip(vae, renders[:decoded] / np.float32(255)) * 255 + 0.5).astype(np.uint8)
    told = targets([scene.prompt for scene in scenes])
    return Pool(np.concatenate([renders, soft]), torch.cat([told, told[:decoded]]))


@torch.no_grad()
def round_trip(vae: Any, pictures: NDArray[np.floating], size: int = 32) -> NDArray[np.float32]:
    """Pictures (N, Y, X, 3) in [0, 1] after encoding (to the mean) and decoding."""
    images = torch.from_numpy(np.asarray(pictures, np.float32)).permute(0, 3, 1, 2)
    parts = [
        vae.decode(vae.encode(part * 2 - 1).latent_dist.mode()).sample
        for part in tqdm(images.split(size), desc="autoencoder", mininterval=10)
    ]
    decoded: NDArray[np.float32] = (torch.cat(parts) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return decoded


def targets(prompts: list[str]) -> Tensor:
    """(N, sum of classes): in the classes of each stated attribute equal weights that sum to 1, elsewhere zeros."""
    table = torch.zeros(len(prompts), sum(map(len, ATTRIBUTES.values())))
    for row, prompt in zip(table, prompts, strict=True):
        parts = dict(zip(ATTRIBUTES, row.split([len(classes) for classes in ATTRIBUTES.values()]), strict=True))
        for name, classes in read_prompt(prompt).items():
            parts[name][[ATTRIBUTES[name].index(value) for value in classes]] = 1 / len(classes)
    return table


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A third blurred, a third brought down to half size and up again, all a little brighter or darker, and noisy.

    pictures: (B, 3, Y, X) in [0, 1]; returns the same, clipped.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(pictures), 1, 1, 1, generator=generator)

    sharp, soft, coarse = pictures.tensor_split(3)
    soft = _blur(soft, float(0.3 + 1.2 * torch.rand((), generator=generator)))
    coarse = F.interpolate(F.avg_pool2d(coarse, 2), scale_factor=2, mode="bilinear", align_corners=False)
    changed = torch.cat([sharp, soft, coarse]) * uniform(0.93, 1.07) + uniform(-0.03, 0.03)
    noise = torch.randn(pictures.shape, generator=generator)
    return (changed + uniform(0, 0.05) * noise).clamp(0, 1)


def _blur(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a standard deviation of `sigma` pixels."""
    reach = 4
    taps = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pictures, [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps, groups=3), taps.transpose(2, 3), groups=3)
