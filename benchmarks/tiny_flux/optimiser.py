"""Muon for the blocks' matrices, Adam for everything else, on one flat vector, with an average of the weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.tiny_flux.flat_parameters import FlatParameters
from benchmarks.tiny_flux.workers import Worker

ADAM_RATE, MUON_RATE, WEIGHT_DECAY = 1.0e-3, 2.0e-3, 0.02
ADAM_BETAS, MUON_MOMENTUM = (0.9, 0.98), 0.95
EMA_DECAY, EMA_WARMUP = 0.9985, 12
MAX_GRADIENT_NORM = 1.0


def orthogonalise(matrix: Tensor) -> Tensor:
    """Newton-Schulz iteration of Muon: (nearly) the closest orthogonal matrix, in float32."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).float()


@dataclass
class OptimiserState:
    """What a resumed run needs: moments in the master's order, and the averaged weights."""

    momentum: Tensor
    variance: Tensor
    average: Tensor
    step: int = 0


class Optimiser:
    """Updates `parameters` in place. All workers hold the same state; the Newton-Schulz work is split between them."""

    def __init__(self, parameters: FlatParameters, worker: Worker) -> None:
        self.parameters, self.worker = parameters, worker
        flat = parameters.master
        self.state = OptimiserState(torch.zeros_like(flat), torch.zeros_like(flat), flat.clone())
        self._decay = torch.zeros_like(flat)
        self._by_muon = torch.zeros_like(flat, dtype=torch.bool)
        matrices = []
        for name, place in parameters.slices.items():
            if len(place.shape) == 2:
                place.view(self._decay).fill_(WEIGHT_DECAY)
            if len(place.shape) == 2 and "blocks." in name and "norm" not in name:
                place.view(self._by_muon).fill_(True)
                matrices.append(place)
        self._blend = torch.where(self._by_muon, 1 - MUON_MOMENTUM, 1 - ADAM_BETAS[0])
        self._mine = sorted(matrices, key=lambda place: -place.shape.numel())[worker.rank :: worker.world]

    @torch.no_grad()
    def step(self, factor: float) -> float:
        """Average the gradients over the workers and update; returns the gradient's norm.

        `factor` scales both learning rates and the weight decay.
        """
        state, flat = self.state, self.parameters.master
        gradient = self.worker.sum(self.parameters.take_gradients()).div_(self.worker.world)
        norm = gradient.norm()
        gradient *= (MAX_GRADIENT_NORM / (norm + 1e-12)).clamp(max=1.0)
        state.step += 1
        state.momentum.lerp_(gradient, self._blend)
        state.variance.lerp_(gradient.square(), 1 - ADAM_BETAS[1])
        deviation = (state.variance / (1 - ADAM_BETAS[1] ** state.step)).sqrt_().add_(1e-8)
        update = (state.momentum / deviation).mul_(ADAM_RATE / (1 - ADAM_BETAS[0] ** state.step))
        turned = torch.zeros_like(flat)
        for place in self._mine:
            direction = place.view(gradient).lerp(place.view(state.momentum), MUON_MOMENTUM)
            place.view(turned).copy_(orthogonalise(direction) * 0.2 * max(place.shape) ** 0.5)
        update = torch.where(self._by_muon, self.worker.sum(turned).mul_(MUON_RATE), update)
        flat.addcmul_(flat, self._decay, value=-MUON_RATE * factor)
        flat.sub_(update, alpha=factor)
        state.average.lerp_(flat, 1 - min(EMA_DECAY, state.step / (state.step + EMA_WARMUP)))
        self.parameters.sync()
        return float(norm)
