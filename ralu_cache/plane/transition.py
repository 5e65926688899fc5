"""Transitions between token layouts: how the canvas is re-noised when tokens are refined (RALU, arXiv 2507.08422).

Conventions: sigma 1 is noise, 0 clean; ``x = (1 - sigma) x0 + sigma n``, velocity ``v = n - x0``. All canvases are
(B, C, H, W) float32 latent images; masks are (B, 1, H, W) bool. Pure tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ralu_cache.plane.canvas import coarsen, join_frames, pool, replicate, split_frames

NOISES = ("rewind", "paper")
STARTS = ("pooled", "subsampled")
LIFTS = ("nearest", "bicubic", "pixel")

Codec = Callable[[Tensor], Tensor]


def seeded_noise(noise: Tensor, salt: str) -> Tensor:
    """White noise like `noise`, drawn per sample from a generator seeded by that sample's own bits and `salt`.

    The global generator is not touched and a sample's noise does not depend on the rest of its batch.
    """
    drawn = []
    for sample in noise:
        bits = sample.detach().float().contiguous().cpu().numpy().tobytes()
        digest = hashlib.blake2b(bits + salt.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn.append(torch.randn(sample.shape, generator=generator))
    return torch.stack(drawn).to(noise)


def coarse_noise(noise: Tensor, start: str) -> Tensor:
    """Unit-variance noise of the coarse grid, on the canvas: twice the block means, or every fourth sample (paper)."""
    return 2 * coarsen(noise) if start == "pooled" else replicate(noise[..., ::2, ::2])


def detail(noise: Tensor) -> Tensor:
    """The part of white `noise` that a coarse canvas cannot hold: zero block mean, block covariance I - J/4."""
    return noise - coarsen(noise)


def level_ratio(sigma: float, sigma_next: float) -> float:
    """Z of sigma' = Z sigma / (1 + (Z - 1) sigma)."""
    return sigma_next * (1 - sigma) / (sigma * (1 - sigma_next))


def renoise_paper(
    canvas: Tensor, sigma: float, sigma_next: float, split: Tensor, fine: Tensor, white: Tensor
) -> Tensor:
    """RALU's correlated noise: x' = a x + sigma' z with z ~ N(0, I - J/Z^2) inside each refined 2x2 block.

    `split` marks the pixels whose tokens are refined now, `fine` those that were fine before; the rest keep their
    grid and get white noise of it scaled by sigma' sqrt(1 - 1/Z^2). `white` is i.i.d. N(0, 1).
    Raises ValueError if the levels need Z < 2, for which no such covariance exists.
    """
    z = level_ratio(sigma, sigma_next)
    if z < 2 - 1e-6:
        raise ValueError(
            f"the paper's noise needs Z >= 2, but going from sigma {sigma:.4f} to {sigma_next:.4f} is Z = {z:.4f}"
        )
    mean = coarsen(white)
    refined = white + (max(0.0, 1 - 4 / z**2) ** 0.5 - 1) * mean
    kept = (1 - 1 / z**2) ** 0.5 * torch.where(fine, white, 2 * mean)
    return (1 - sigma_next) / (1 - sigma) * canvas + sigma_next * torch.where(split, refined, kept)


def renoise_rewind(
    canvas: Tensor,
    velocity: Tensor,
    sigma: float,
    sigma_next: float,
    split: Tensor,
    noise: Tensor,
    lift: Callable[[Tensor], Tensor],
) -> Tensor:
    """Walk back along the sample's own noise instead of mixing in fresh noise.

    A token that keeps its grid goes back along its last velocity: x' = x + (sigma' - sigma) v. A refined token becomes
    x' = (1 - sigma') lift(x0) + sigma' (n/2 + d), with its own noise estimate n = x0 + v and the detail d of the seed's
    initial `noise`: unit variance again, because n/2 has block covariance J/4 and d has I - J/4.
    """
    x0 = canvas - sigma * velocity
    refined = (1 - sigma_next) * lift(x0) + sigma_next * refined_noise(x0 + velocity, noise)
    return torch.where(split, refined, canvas + (sigma_next - sigma) * velocity)


def refined_noise(estimate: Tensor, noise: Tensor) -> Tensor:
    """The noise of refined tokens, from an estimate of that of their coarse ones and the seed's initial `noise`."""
    return 0.5 * estimate + detail(noise)


def make_lift(
    name: str, decode: Codec | None = None, encode: Codec | None = None, frames: int = 1
) -> Callable[[Tensor], Tensor]:
    """A map from a coarse clean estimate on the canvas, of so many frames, to a fine one, same shape.

    `nearest` keeps the replicated pixels, `bicubic` interpolates each frame's latent, `pixel` decodes the half-size
    latent, doubles the image and encodes it again. Raises ValueError for an unknown name or a missing autoencoder.
    """
    if name == "nearest":
        return lambda x0: x0
    if name == "bicubic":
        return lambda x0: join_frames(
            F.interpolate(pool(split_frames(x0, frames)), scale_factor=2.0, mode="bicubic"), frames
        )
    if name != "pixel":
        raise ValueError(f"unknown lift {name!r}; accepted: {', '.join(LIFTS)}")
    if decode is None or encode is None:
        raise ValueError(
            "lift 'pixel' needs an autoencoder of images, and this pipeline has none; use 'nearest' or 'bicubic'"
        )
    decoder, encoder = decode, encode
    return lambda x0: encoder(F.interpolate(decoder(pool(x0)), scale_factor=2.0, mode="bicubic")).to(x0)
