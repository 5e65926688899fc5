"""The task of the tiny SD3 transformer: the velocity that tiny FLUX predicts, later also the scenes' own.

What tiny FLUX predicts for the same noisy tokens has none of the noise that a scene's own velocity has, so a small
batch says much; the share of the scenes' own target grows when the coarse is learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor
from torch.func import functional_call

from benchmarks.tiny_flux.batches import DROPPED_PROMPTS, OWN_FRAME, Draws, draw_levels
from benchmarks.tiny_flux.fast_forward import FastForward
from benchmarks.tiny_flux.flat_parameters import FlatParameters
from benchmarks.tiny_flux.latents import LatentData, read_prompts
from benchmarks.tiny_flux.text import TextModels
from benchmarks.tiny_flux.tokens import COARSE, FINE, position_ids, random_mixed
from benchmarks.tiny_flux.trainer import Trainer, TrainingConfig
from benchmarks.tiny_flux.workers import Worker
from benchmarks.tiny_sd3.network import TokenVelocity
from benchmarks.tiny_sd3.parts import assemble, encode_prompts

TEACHER_ALONE, LEAST_TEACHER = 0.55, 0.3
"""Share of the budget in which tiny FLUX alone is the target; its weight at the end."""


@dataclass(frozen=True)
class Placed:
    """Clean tokens (B, N, 16) at (row, column) positions (N, 2) of a grid of side x side."""

    clean: Tensor
    positions: Tensor
    side: int


def place(kind: str, half: Tensor, full: Tensor, own: bool, rng: np.random.Generator) -> Placed:
    """The tokens of one kind of batch: in a frame of their own, or else in another where a staged sampler may put them.

    Coarse tokens lie at the centre of their cell, so in a grid of fine tokens at 0.5, 2.5, ..., and the fine ones of a
    grid of coarse tokens at quarters.
    """
    coarse, fine = position_ids(COARSE)[:, 1:], position_ids(FINE)[:, 1:]
    if kind == "full":
        return Placed(full, fine, FINE) if own else Placed(full, fine / 2 - 0.25, COARSE)
    if kind == "half":
        return Placed(half, coarse, COARSE) if own else Placed(half, coarse * 2 + 0.5, FINE)
    mixed = random_mixed(rng)
    clean = mixed.gather(half, full)
    if own:
        return Placed(clean, torch.cat([coarse[mixed.kept], fine[mixed.fine] / 2 - 0.25]), COARSE)
    return Placed(clean, torch.cat([coarse[mixed.kept] * 2 + 0.5, fine[mixed.fine]]), FINE)


class DistilTask(Draws):
    """The mean squared error to a blend of tiny FLUX's velocity and the scenes' own."""

    def __init__(
        self,
        model: SD3Transformer2DModel,
        teacher: FluxTransformer2DModel,
        data: LatentData,
        text: tuple[Tensor, Tensor],
    ) -> None:
        """`text`: the student's features of every scene's prompt, and last those of the empty prompt."""
        self.network = TokenVelocity(model)
        names = {name: [name] for name, _ in self.network.named_parameters()}
        self.parameters = FlatParameters(self.network, names, torch.float32, torch.device("cpu"))
        self.teacher = FastForward(teacher, torch.float32, torch.device("cpu"))
        self.data, self.words, self.pooled = data, *text

    def loss(self, kind: str, count: int, fraction: float) -> Tensor:
        """See `Task.loss`."""
        data, generator = self.data, self._generator
        index = data.choose(self._own, count)
        own = bool(self._shared.random() < OWN_FRAME)
        placed = place(kind, data.half[index].float(), data.full[index].float(), own, self._shared)
        sigma = draw_levels(count, kind, generator)
        noise = torch.randn(placed.clean.shape, generator=generator)
        noisy = torch.lerp(placed.clean, noise, sigma[:, None, None])
        dropped = torch.rand(count, generator=generator) < DROPPED_PROMPTS
        target = noise - placed.clean
        weight = teacher_weight(fraction)
        words, pooled = data.words[index].float(), data.pooled[index].float()
        words[dropped], pooled[dropped] = data.empty_words, data.empty_pooled
        with torch.no_grad():
            ids = torch.cat([torch.zeros(len(placed.positions), 1), placed.positions], 1)
            target = torch.lerp(target, self.teacher(noisy, words, pooled, sigma, ids), weight)
        rows = index.where(~dropped, torch.tensor(len(self.words) - 1))
        call = (noisy, self.words[rows].float(), self.pooled[rows].float(), sigma, placed.positions, placed.side)
        predicted: Tensor = functional_call(self.network, self.parameters.leaves, call)
        return (predicted - target).square().mean()


def teacher_weight(fraction: float) -> float:
    """1 at first, falling linearly to `LEAST_TEACHER` at the end of the budget."""
    return 1 - (1 - LEAST_TEACHER) * max(0.0, fraction - TEACHER_ALONE) / (1 - TEACHER_ALONE)


def student_text(model: SD3Transformer2DModel, flux: Path, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The student's features of the prompts and of the empty one, float16."""
    words, pooled = encode_prompts(assemble(model, flux), [*prompts, ""])
    return words.half(), pooled.half()


def train(
    worker: Worker,
    config: TrainingConfig,
    model: SD3Transformer2DModel,
    flux: Path,
    text: TextModels,
    latents: Path,
    folder: Path,
) -> None:
    """Train `model` (the same on all workers) with tiny FLUX as teacher; the lead saves averaged weights and log."""
    teacher = FluxTransformer2DModel.from_pretrained(flux / "transformer", dtype=torch.float32)
    data = LatentData.load(latents, text, hard_shapes=True)
    task = DistilTask(model, teacher, data, student_text(model, flux, read_prompts(latents)))
    trainer = Trainer(worker, config, task, folder)
    trainer.run()
    if worker.leads:
        prefix = "model."
        model.load_state_dict(
            {name.removeprefix(prefix): value for name, value in trainer.averaged().items()}, strict=False
        )
        model.save_pretrained(folder / "transformer")
        trainer.write_log()
