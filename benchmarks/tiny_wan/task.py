"""The task of the tiny Wan transformer: rectified flow on coarse, fine and mixed token sets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from benchmarks.tiny_flux.batches import DROPPED_PROMPTS, OWN_FRAME, Draws, draw_levels
from benchmarks.tiny_flux.trainer import Trainer, TrainingConfig
from benchmarks.tiny_flux.workers import Worker
from benchmarks.tiny_wan.latents import PATCH, ClipData, Text
from benchmarks.tiny_wan.network import TokenVelocity
from benchmarks.tiny_wan.scenes import FRAMES
from ralu_cache.plane.canvas import TokenLayout

LATENT_FRAMES = (FRAMES + 1) // 2
CELLS = 4  # coarse tokens along a side of a frame
REFINED = (0.15, 0.45)
"""Shares of the cells that a mixed set refines."""
SAME_IN_ALL_FRAMES = 0.4
"""Chance that a mixed set refines the same cells of all frames."""


@dataclass(frozen=True)
class Placed:
    """Clean tokens (B, N, 32) at positions (N, 3): frame, row and column."""

    clean: Tensor
    positions: Tensor


def place(kind: str, half: Tensor, full: Tensor, own: bool, rng: np.random.Generator) -> Placed:
    """The tokens of one kind of batch, where a staged sampler puts them.

    Rows and columns count fine tokens where all are fine, else coarse ones, unless these are not to have a frame of
    their `own`. Coarse tokens lie at the centre of their cell, so at 0.5, 2.5, ... in fine tokens.
    """
    refined = torch.zeros(LATENT_FRAMES, CELLS, CELLS, dtype=torch.bool)
    if kind == "full":
        refined = ~refined
    elif kind == "mixed":
        refined = random_refined(rng)
    layout = TokenLayout(refined.view(1, -1, CELLS), PATCH, frames=LATENT_FRAMES)
    clean = torch.cat([half[:, layout.coarse_index[0]], full[:, layout.fine_index[0]]], 1)
    frame, fine = layout.token_frames()[0], layout.positions()[0]
    fine = fine - torch.stack([2 * CELLS * frame, torch.zeros_like(frame)], 1)
    positions = (fine - 0.5) / 2 if own and kind != "full" else fine
    return Placed(clean, torch.cat([frame[:, None], positions], 1))


def random_refined(rng: np.random.Generator) -> Tensor:
    """(F, 4, 4) bool: cells near a point that drifts over the frames, with a ragged edge, or the same in all frames."""
    count = round(rng.uniform(*REFINED) * LATENT_FRAMES * CELLS**2)
    place, drift = rng.uniform(0, CELLS - 1, 2), rng.uniform(-0.5, 0.5, 2)
    frame, row, column = np.meshgrid(*(np.arange(n) for n in (LATENT_FRAMES, CELLS, CELLS)), indexing="ij")
    same = rng.random() < SAME_IN_ALL_FRAMES
    moved = 0 if same else frame - LATENT_FRAMES // 2
    distance = (row - place[0] - drift[0] * moved) ** 2 + (column - place[1] - drift[1] * moved) ** 2
    ragged = rng.uniform(0, 3, (1, CELLS, CELLS) if same else distance.shape)
    order = (distance + ragged).flatten().argsort()
    refined = torch.zeros(LATENT_FRAMES * CELLS**2, dtype=torch.bool)
    refined[torch.from_numpy(order[:count])] = True
    return refined.view(LATENT_FRAMES, CELLS, CELLS)


class VideoTask(Draws):
    """The mean squared error of the velocity."""

    def __init__(self, model: WanTransformer3DModel, data: ClipData, dtype: torch.dtype) -> None:
        self.network, self.data = TokenVelocity(model, dtype), data
        self.parameters = self.network.parameters

    def loss(self, kind: str, count: int, fraction: float) -> Tensor:
        """See `Task.loss`."""
        data, generator = self.data, self._generator
        index = torch.from_numpy(self._own.integers(len(data.full), size=count))
        own = bool(self._shared.random() < OWN_FRAME)
        placed = place(kind, data.half[index], data.full[index], own, self._shared)
        clean = placed.clean.float()
        sigma = draw_levels(count, kind, generator)
        noise = torch.randn(clean.shape, generator=generator)
        words = data.words[index].float()
        words[torch.rand(count, generator=generator) < DROPPED_PROMPTS] = data.empty
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        return (self.network(noisy, words, sigma, placed.positions) - (noise - clean)).square().mean()


def train(
    worker: Worker,
    config: TrainingConfig,
    model: WanTransformer3DModel,
    text: Text,
    latents: Path,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Train `model`; save the averaged weights and the log."""
    trainer = Trainer(worker, config, VideoTask(model, ClipData.load(latents, text), dtype), folder)
    trainer.run()
    model.load_state_dict(trainer.averaged(), strict=False)
    model.save_pretrained(folder / "transformer")
    trainer.write_log()
