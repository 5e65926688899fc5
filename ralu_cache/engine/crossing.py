"""The canvas over a transition: what it becomes on the next stage's tokens, and at the level where that begins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ralu_cache.engine.autoencoder import Autoencoder
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.spatial import SpatialMethod
from ralu_cache.plane.transition import make_lift, refined_noise, renoise_paper, renoise_rewind, seeded_noise


@dataclass(frozen=True, eq=False)
class Crossing:
    """From the layout `before` at level `sigma` to `after` at `sigma_next`. noise: the seed's, (B, C, H, W)."""

    method: SpatialMethod
    before: TokenLayout
    after: TokenLayout
    sigma: float
    sigma_next: float
    noise: Tensor

    @property
    def fresh(self) -> bool:
        """True if every token gets new noise, as in the paper."""
        return self.method.noise == "paper"

    @cached_property
    def split(self) -> Tensor:
        """The latent pixels of coarse tokens that become fine ones."""
        return self.after.fine_pixels & ~self.before.fine_pixels

    def canvas(self, x: Tensor, v: Tensor, autoencoder: Autoencoder, step: int) -> Tensor:
        """The canvas (B, C, H, W) that `x` becomes, with velocity `v`. step: names the noise where it is new."""
        if self.fresh:
            white = seeded_noise(self.noise, f"transition at step {step}")
            return renoise_paper(x, self.sigma, self.sigma_next, self.split, self.before.fine_pixels, white)
        lift = make_lift(self.method.lift, autoencoder.decode, autoencoder.encode, self.after.frames)
        return renoise_rewind(x, v, self.sigma, self.sigma_next, self.split, self.noise, lift)

    def estimate(self, estimate: Tensor, x: Tensor, moved: Tensor) -> Tensor:
        """What becomes of an estimate of the noise in `x`, which became `moved`."""
        if not self.fresh:
            return torch.where(self.split, refined_noise(estimate, self.noise), estimate)
        scale = (1 - self.sigma_next) / (1 - self.sigma)
        return (scale * self.sigma * estimate + (moved - scale * x)) / self.sigma_next

    @property
    def changed(self) -> Tensor:
        """(B, n) bool: the tokens into which new noise was mixed."""
        after = self.after
        return torch.full((after.batch, after.tokens), self.fresh, device=after.refined.device)
