"""Guided trajectories on which the student is taught, many at once and each at a noise level of its own.

A step of the training asks the teacher for its guided velocity at the current points, and by the same velocity (or by
the student's own, for a share of the trajectories) the points move on: labels cost nothing beside the walk.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.tiny_flux.scenes import sample_scene
from benchmarks.tiny_flux.text import TextModels
from benchmarks.tiny_flux.tokens import COARSE, FINE, pack

GUIDANCE = (1.0, 8.0)
STEPS, SHIFTS = (4, 40), (1.3, 3.6)
"""Bounds of the guidance (uniform), and of a trajectory's steps and shift (uniform in their logarithms)."""
OWN_STEPS = 0.5
"""Share of the trajectories that the student walks: it is corrected where it goes itself."""
LIFTED, LIFT_LEVELS = 0.3, (0.15, 0.9)
"""Share of the fine trajectories that begin at a level in between, from a coarse one's estimate of the clean picture,
as a staged sampler's do."""
EARLIER = 64  # coarse estimates that wait to be lifted


@dataclass(eq=False)  # two walks are never the same
class Walk:
    """One trajectory: tokens (N, 16) at the level sigmas[0]; its features of the prompt, (16, 96) and (64,)."""

    tokens: Tensor
    sigmas: list[float]
    guidance: float
    words: Tensor
    pooled: Tensor
    by_student: bool


@dataclass(frozen=True)
class Points:
    """Where some of the walks are: tokens (B, N, 16), levels and guidance (B,), features (B, 16, 96) and (B, 64)."""

    chosen: list[int]
    tokens: Tensor
    sigma: Tensor
    guidance: Tensor
    words: Tensor
    pooled: Tensor


def levels(steps: int, shift: float, start: float = 1.0) -> list[float]:
    """The noise levels of Euler's `steps` steps from `start`, shifted as flow-match schedulers do; the last is 0."""
    t = np.linspace(start / (shift - (shift - 1) * start), 0, steps + 1)
    return [float(level) for level in shift * t / (1 + (shift - 1) * t)]


def lift(tokens: Tensor) -> Tensor:
    """Coarse tokens (B, 64, 16) as fine ones (B, 256, 16): every latent pixel becomes 2 x 2 equal ones."""
    side = COARSE
    pixels = tokens.view(-1, side, side, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 2 * side, 2 * side)
    return pack(pixels.repeat_interleave(2, -1).repeat_interleave(2, -2))


class Trajectories:
    """A pool of walks at one resolution."""

    def __init__(self, side: int, size: int, text: TextModels, rng: np.random.Generator) -> None:
        """side: tokens of a side, `COARSE` or `FINE`. size: number of walks, several batches for a good mixture."""
        self.side, self.text, self.rng = side, text, rng
        self.earlier: deque[Walk] = deque(maxlen=EARLIER)
        self.walks = [self.begin() for _ in range(size)]

    def begin(self) -> Walk:
        """A new walk, from noise or, at the fine resolution, from an earlier coarse one."""
        if self.earlier and self.rng.random() < LIFTED:
            coarse = self.earlier.popleft()
            clean, start = lift(coarse.tokens[None])[0], float(self.rng.uniform(*LIFT_LEVELS))
            return self.walk(clean, start, coarse.guidance, coarse.words, coarse.pooled)
        words, pooled = self.text.encode([sample_scene(self.rng).prompt])
        return self.walk(torch.zeros(self.side**2, 16), 1.0, self.draw_guidance(), words[0], pooled[0])

    def walk(self, clean: Tensor, start: float, guidance: float, words: Tensor, pooled: Tensor) -> Walk:
        """A walk from clean tokens (N, 16) noised to the level `start`, with steps and a shift of its own."""
        rng = self.rng
        steps, shift = (float(np.exp(rng.uniform(*np.log(bounds)))) for bounds in (STEPS, SHIFTS))
        noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32))
        sigmas = levels(max(1, round(steps * start)), shift, start)
        by_student = bool(rng.random() < OWN_STEPS)
        return Walk(torch.lerp(clean, noise, start), sigmas, guidance, words, pooled, by_student)

    def draw_guidance(self) -> float:
        """Uniform within `GUIDANCE`."""
        return float(self.rng.uniform(*GUIDANCE))

    def draw(self, count: int) -> Points:
        """The points of `count` walks, chosen at random. Raises ValueError for more than there are."""
        chosen = [int(index) for index in self.rng.choice(len(self.walks), count, replace=False)]
        walks = [self.walks[index] for index in chosen]
        tokens, words, pooled = (
            torch.stack([getattr(walk, name) for walk in walks]) for name in ("tokens", "words", "pooled")
        )
        sigma = torch.tensor([walk.sigmas[0] for walk in walks])
        return Points(chosen, tokens, sigma, torch.tensor([walk.guidance for walk in walks]), words, pooled)

    def advance(self, points: Points, teacher: Tensor, student: Tensor, lifted: "Trajectories | None" = None) -> None:
        """One Euler step of these walks along the velocities (B, N, 16); those that arrive begin anew.

        lifted: the fine pool that takes over what coarse walks arrive at.
        """
        for index, by_teacher, by_student in zip(points.chosen, teacher, student, strict=True):
            walk = self.walks[index]
            velocity = by_student if walk.by_student else by_teacher
            walk.tokens = walk.tokens + (walk.sigmas[1] - walk.sigmas[0]) * velocity
            walk.sigmas = walk.sigmas[1:]
            if len(walk.sigmas) == 1:
                if lifted is not None:
                    lifted.earlier.append(walk)
                self.walks[index] = self.begin()


def pools(size: dict[str, int], text: TextModels, seed: list[int]) -> dict[str, Trajectories]:
    """A pool each for the coarse and the fine resolution, by the names of their batches."""
    sides = {"half": COARSE, "full": FINE}
    return {
        kind: Trajectories(side, size[kind], text, np.random.default_rng([*seed, side])) for kind, side in sides.items()
    }
