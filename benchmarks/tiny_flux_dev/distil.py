"""The task of tiny FLUX dev: one call that predicts tiny FLUX's guided velocity (Meng et al. 2022, first stage)."""

from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.tiny_flux.batches import Batches
from benchmarks.tiny_flux.fast_forward import FastForward
from benchmarks.tiny_flux.latents import LatentData
from benchmarks.tiny_flux.text import TextModels
from benchmarks.tiny_flux.tokens import COARSE, FINE, position_ids
from benchmarks.tiny_flux.trainer import Chances, Trainer, TrainingConfig
from benchmarks.tiny_flux.workers import Worker
from benchmarks.tiny_flux_dev.network import with_guidance
from benchmarks.tiny_flux_dev.trajectories import GUIDANCE, pools

SHIFT = 2.46  # e^0.9, the pipeline's at 256 tokens
POOL = 4  # batches that a pool of trajectories holds
OTHER_FRAMES = 0.2
"""Share of the batches whose positions are those of a staged sampler: coarse tokens in fine units, or the reverse."""


def guided(
    teacher: FastForward, latents: Tensor, sigma: Tensor, guidance: Tensor, positions: Tensor,
    words: Tensor, pooled: Tensor, empty: tuple[Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """v_u + g (v_c - v_u), as a pipeline with true CFG and an empty negative prompt computes it; (B, N, 16), float32.

    Args:
        latents: noisy tokens (B, N, 16).
        sigma, guidance: level and scale of every sample (B,).
        positions: ids of the tokens (N, 3).
        words, pooled: features of the prompts, (B, 16, 96) and (B, 64).
        empty: those of the empty prompt, (16, 96) and (64,).
    """
    both = torch.cat([words, empty[0].expand_as(words)]), torch.cat([pooled, empty[1].expand_as(pooled)])
    with torch.no_grad():
        told, untold = teacher(latents.repeat(2, 1, 1), *both, sigma.repeat(2), positions).chunk(2)
    return torch.lerp(untold, told, guidance[:, None, None])


def error_weight(sigma: Tensor, guidance: Tensor) -> Tensor:
    """What a squared error at each level and guidance (B,) weighs: dσ/dt of the shifted schedule over g².

    Unweighted, the first levels and the largest guidance decide alone: what is to be learnt there is a hundred times
    as large. But an error moves the picture by itself times dσ, and the levels stand closest at the start.
    """
    t = sigma / (SHIFT - (SHIFT - 1) * sigma)
    return SHIFT / (1 + (SHIFT - 1) * t).square() / guidance.square()


class GuidanceTask:
    """The squared error to the guided velocity, weighted by `error_weight`.

    Coarse and fine batches are points on guided trajectories; mixed ones are noised scenes.
    """

    def __init__(
        self, teacher: FluxTransformer2DModel, model: FluxTransformer2DModel, data: LatentData, text: TextModels,
        batch: dict[str, int], dtype: torch.dtype,
    ) -> None:  # fmt: skip
        device = torch.device("cpu")
        self.network, self.teacher = FastForward(model, dtype, device), FastForward(teacher, dtype, device)
        self.parameters = self.network.parameters
        self.data, self.text, self.batch = data, text, batch

    def begin(self, seed: int, step: int, rank: int) -> None:
        """See `Task.begin`. The trajectories begin anew too, from noised scenes at all levels."""
        self._batches = Batches(self.data, seed, step, rank)
        self._rng = np.random.default_rng([seed, step, rank])
        sizes = {kind: POOL * self.batch[kind] for kind in ("half", "full")}
        self._pools = pools(sizes, self.text, [seed, step, rank])
        for kind, pool in self._pools.items():
            clean, words, pooled = getattr(self.data, kind), self.data.words, self.data.pooled
            pool.walks = [
                pool.walk(clean[i].float(), self._rng.uniform(0.05, 1), pool.draw_guidance(), words[i].float(),
                          pooled[i].float())
                for i in self.data.choose(self._rng, sizes[kind])
            ]  # fmt: skip

    def choose_kind(self, chances: Chances) -> str:
        """See `Task.choose_kind`."""
        return self._batches.choose_kind(chances)

    def loss(self, kind: str, count: int, fraction: float) -> Tensor:
        """See `Task.loss`."""
        if kind == "mixed":
            batch = self._batches.draw(kind, count)
            guidance = torch.from_numpy(self._rng.uniform(*GUIDANCE, count)).float()
            call = (batch.noisy, batch.words, batch.pooled, batch.sigma, guidance, batch.positions)
            return self._error(*call)[0]
        pool, positions = self._pools[kind], self._positions(kind)
        points = pool.draw(count)
        call = (points.tokens, points.words, points.pooled, points.sigma, points.guidance, positions)
        loss, target, predicted = self._error(*call)
        pool.advance(points, target, predicted.detach(), self._pools["full"] if kind == "half" else None)
        return loss

    def _error(
        self, latents: Tensor, words: Tensor, pooled: Tensor, sigma: Tensor, guidance: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(scalar loss, the teacher's guided velocity, the student's)."""
        empty = self.data.empty_words, self.data.empty_pooled
        target = guided(self.teacher, latents, sigma, guidance, positions, words, pooled, empty)
        predicted = self.network(latents, words, pooled, sigma, positions, guidance)
        loss = ((predicted - target).square().mean((1, 2)) * error_weight(sigma, guidance)).mean()
        return loss, target, predicted

    def _positions(self, kind: str) -> Tensor:
        """Ids (N, 3) in the tokens' own frame mostly."""
        own, frame = position_ids(COARSE if kind == "half" else FINE), self._rng.random()
        if frame >= OTHER_FRAMES:
            return own
        if kind == "full":
            return own / 2
        return own * 2 if frame < OTHER_FRAMES / 2 else own * 2 + torch.tensor([0, 0.5, 0.5])


def train(
    worker: Worker, config: TrainingConfig, flux: Path, text: TextModels, latents: Path, folder: Path,
    dtype: torch.dtype, first: Path | None = None,
) -> None:  # fmt: skip
    """Distil the pipeline in `flux`; the lead saves the averaged weights in `folder`/transformer and the log.

    first: a transformer that was distilled before, whose weights the student begins with instead of the teacher's.
    """
    torch.manual_seed(config.seed)
    teacher = FluxTransformer2DModel.from_pretrained(flux / "transformer", dtype=torch.float32)
    if first is None:
        model = with_guidance(teacher)
    else:
        model = FluxTransformer2DModel.from_pretrained(first, dtype=torch.float32)
    task = GuidanceTask(teacher, model, LatentData.load(latents, text, False), text, config.batch, dtype)
    trainer = Trainer(worker, config, task, folder)
    trainer.run()
    if worker.leads:
        model.load_state_dict(trainer.averaged())
        model.save_pretrained(folder / "transformer")
        trainer.write_log()
