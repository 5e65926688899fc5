"""SeaCache (arXiv 2602.18993, code jiwoogit/SeaCache): TeaCache's rule on what is picture, not noise, in the signal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ralu_cache.plane.checks import check_choice, check_integer, check_number
from ralu_cache.temporal.base import Accumulating
from ralu_cache.temporal.policy import Situation

CLEAREST = 1e-6  # sigma is kept this far from 0 and 1, as in the published code


@dataclass(frozen=True)
class SeaCache(Accumulating):
    """Reuse the residual while sum of mean|s - s_prev| / mean|s_prev| < threshold; s: spectrally filtered signal.

    The filter is Wiener's for a picture of power 1 / |f|^beta in white noise at the step's own level, so the distance
    needs no coefficients. Both signals that can be chosen live on one grid in every stage. Every signal is filtered;
    the published code keeps the first one as it is, so its second step compares unlike things.

    Important
        threshold: one number, or one for each stage; 0.3 is published for FLUX (50 steps, 2.2x).
    To tinker with
        signal: "canvas", the latents, needs no access to the model; "plane", the modulated input spread on the fine
            token grid, is what the published code filters.
        order: 1 continues the last two residuals linearly in sigma; 0 reuses the last one, as published. At equal cost
            1 was 4 dB or more closer to the uncached run, unguided (benchmarks/results/temporal/curves.md), but about
            1 dB farther on "ralu-4x" with guidance 3, where one picture of six took a stain.
        beta: 2 for images, 3 for video; eps: as published. Here the frames of a video are filtered one by one.
        transition: see `ralu_cache.temporal.base.Rules`; "trend" is as "reset" with order 0.
        first, last, compute_stage_end, max_age: see `ralu_cache.temporal.base.Rules`.
    """

    threshold: float | tuple[float, ...] = 0.3
    beta: float = 2.0
    order: int = 1
    signal: str = field(default="canvas", kw_only=True)
    eps: float = field(default=1e-16, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta, 0)
        check_integer("order", self.order, 0, 1)
        check_choice("signal", self.signal, ("canvas", "plane"))
        check_number("eps", self.eps, 1e-30)

    def prepare(self, situation: Situation, signal: Tensor | None) -> Tensor | None:
        if signal is None:
            return None
        height, width = signal.shape[-2:]
        key = "gain", height, width, signal.device
        if key not in situation.made:
            situation.made[key] = plane_gain(height, width, situation.sigma, self.beta, self.eps, signal.device)
        return spectral_filter(signal, situation.made[key])


def axis_gain(
    size: int, sigma: float, beta: float = 2.0, eps: float = 1e-16, device: torch.device | None = None
) -> Tensor:
    """(size,) float64: gain of each frequency of one axis, in the order of `torch.fft.fftfreq`, mean 1.

    (1 - sigma) P / ((1 - sigma)^2 P + sigma^2 + eps) with P = 1 / (|f|^beta + eps), f in cycles per sample.
    """
    sigma = min(max(sigma, CLEAREST), 1 - CLEAREST)
    power = 1 / (torch.fft.fftfreq(size, dtype=torch.float64, device=device).abs() ** beta + eps)
    gain = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2 + eps)
    return gain / gain.mean()


def plane_gain(
    height: int, width: int, sigma: float, beta: float = 2.0, eps: float = 1e-16, device: torch.device | None = None
) -> Tensor:
    """(H, W // 2 + 1) float32: both axes' gains on the half plane of `torch.fft.rfft2`, for one level.

    The mean over the whole plane is the product of the axes' means, so it is 1.
    """
    rows, columns = (axis_gain(size, sigma, beta, eps, device) for size in (height, width))
    return (rows[:, None] * columns[: width // 2 + 1]).to(torch.float32)


def spectral_filter(image: Tensor, gain: Tensor) -> Tensor:
    """Multiply the spectrum of (B, ..., H, W) by a `plane_gain`, frames of a video one by one; result float32.

    Each sample is transformed by a call of its own, so its bits do not depend on the batch.
    """
    if image.ndim < 4:
        raise ValueError(f"the filter needs images (B, C, H, W), got {tuple(image.shape)}")
    size = image.shape[-2:]
    return torch.stack([torch.fft.irfft2(torch.fft.rfft2(x.float()) * gain, s=size) for x in image])
