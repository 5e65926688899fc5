"""Training batches of three kinds: half-size scenes, full-size scenes, and mixed token sets.

The kind of a step, its frame of positions and its mixed set are drawn from a generator that all workers share, so their
gradients belong to the same kind of step; scenes, levels and noise are each worker's own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.tiny_flux.latents import LatentData
from benchmarks.tiny_flux.tokens import COARSE, FINE, position_ids, random_mixed

KINDS = ("half", "full", "mixed")
LEVEL_SHIFT = {"half": 1.5, "full": 2.5, "mixed": 2.2}
UNIFORM_LEVELS, DROPPED_PROMPTS, OWN_FRAME = 0.15, 0.05, 0.8


@dataclass(frozen=True)
class Batch:
    """One worker's batch; `clean` and `noise` are (B, N, 16), `sigma` is (B,), `positions` (N, 3)."""

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    words: Tensor
    pooled: Tensor
    positions: Tensor

    @property
    def noisy(self) -> Tensor:
        """x_sigma = (1 - sigma) x0 + sigma n."""
        sigma = self.sigma[:, None, None]
        return (1 - sigma) * self.clean + sigma * self.noise

    @property
    def velocity(self) -> Tensor:
        """The target, n - x0."""
        return self.noise - self.clean

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def draw_levels(count: int, kind: str, generator: torch.Generator) -> Tensor:
    """Stratified logit-normal noise levels, a share of them uniform, shifted to where this resolution needs them."""
    quantile = (torch.rand(count, generator=generator) + torch.arange(count)) / count
    level = torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)).sigmoid()
    uniform = torch.rand(count, generator=generator)
    level = torch.where(torch.rand(count, generator=generator) < UNIFORM_LEVELS, uniform, level)
    shift = LEVEL_SHIFT[kind]
    return shift * level / (1 + (shift - 1) * level)


class Draws:
    """A worker's random numbers, shared with all workers and its own: the part of `trainer.Task` that tasks share."""

    def begin(self, seed: int, step: int, rank: int) -> None:
        """See `Task.begin`."""
        self._shared = np.random.default_rng([seed, step])
        self._own = np.random.default_rng([seed, step, rank + 1])
        self._generator = torch.Generator().manual_seed(int(self._own.integers(2**62)))

    def choose_kind(self, chances: tuple[float, float, float]) -> str:
        """See `Task.choose_kind`."""
        return str(self._shared.choice(KINDS, p=chances))


class Batches(Draws):
    """Draws batches; `seed` and `start` (the first step of a resumed run) determine every one of them."""

    def __init__(self, data: LatentData, seed: int, start: int, rank: int) -> None:
        self.data = data
        self.begin(seed, start, rank)

    def draw(self, kind: str, count: int) -> Batch:
        """A batch of `count` samples of one kind."""
        index = self.data.choose(self._own, count)
        clean, positions = self._tokens(kind, index)
        sigma = draw_levels(count, kind, self._generator)
        words, pooled = self.data.words[index].float(), self.data.pooled[index].float()
        dropped = torch.rand(count, generator=self._generator) < DROPPED_PROMPTS
        words[dropped], pooled[dropped] = self.data.empty_words, self.data.empty_pooled
        noise = torch.randn(clean.shape, generator=self._generator)
        return Batch(clean, noise, sigma, words, pooled, positions)

    def _tokens(self, kind: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Clean tokens and their position ids: mostly in their own frame, else in one that a staged sampler uses."""
        data = self.data
        if kind == "half":
            own, frame = position_ids(COARSE), self._shared.random()
            if frame >= OWN_FRAME:
                own = own * 2
            if frame >= (1 + OWN_FRAME) / 2:
                own = own + torch.tensor([0, 0.5, 0.5])
            return data.half[index].float(), own
        if kind == "full":
            own = position_ids(FINE)
            return data.full[index].float(), own if self._shared.random() < OWN_FRAME else own / 2
        mixed = random_mixed(self._shared)
        clean = mixed.gather(data.half[index], data.full[index]).float()
        return clean, mixed.positions(doubled=bool(self._shared.random() < 0.5))
