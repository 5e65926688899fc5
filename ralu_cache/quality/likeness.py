"""Likeness of pictures to reference pictures: PSNR, SSIM and MS-SSIM per picture."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ralu_cache.quality.base import Likeness, MetricInfo, check_pairs

EQUAL_DB = 100.0
"""The PSNR that stands for equal pictures where a finite number is needed."""
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11  # pixels of a side


def psnr(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """Peak signal-to-noise ratio in dB of (B, Y, X, 3) pictures in [0, 1]; infinite for equal ones."""
    shown, wanted = _images(pictures, references)
    values: list[float] = peak_signal_noise_ratio(
        shown, wanted, data_range=1.0, reduction="none", dim=(1, 2, 3)
    ).tolist()
    return values


def ssim(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """Structural similarity of (B, Y, X, 3) pictures in [0, 1]; 1.0 for equal ones."""
    shown, wanted = _images(pictures, references)
    values = structural_similarity_index_measure(shown, wanted, data_range=1.0, reduction="none")
    assert isinstance(values, torch.Tensor)  # a pair only if the whole map is asked for
    return _each(values)


def ms_ssim(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """Multi-scale structural similarity (Wang et al. 2003) of (B, Y, X, 3) pictures in [0, 1]; 1.0 for equal ones.

    The published five scales with their 11-pixel window need 176 pixels of the shorter side. Smaller pictures get as
    many scales as fit (four from 99 pixels on, so at 128; three from 44, two from 22), with the published weights of
    these scales renormalised to sum to 1: values at sizes with different numbers of scales are not comparable.
    Negative contrast counts as zero. Raises ValueError for pictures of 10 pixels or less.
    """
    shown, wanted = _images(pictures, references)
    side = min(shown.shape[-2:])
    # The window must fit into the last scale; torchmetrics' own bound grows with the square of the scales.
    fitting = [count for count in range(1, 6) if side >= _WINDOW * max(2 ** (count - 1), (count - 1) ** 2)]
    if not fitting:
        raise ValueError(f"MS-SSIM needs pictures of at least {_WINDOW} pixels a side, got {tuple(shown.shape[-2:])}")
    weights = _SCALE_WEIGHTS[: fitting[-1]]
    values = multiscale_structural_similarity_index_measure(
        shown,
        wanted,
        kernel_size=_WINDOW,
        data_range=1.0,
        reduction="none",
        betas=tuple(weight / sum(weights) for weight in weights),
        normalize="relu",
    )
    return _each(values)


LIKENESS = (
    Likeness("psnr", MetricInfo("PSNR", "dB"), psnr, EQUAL_DB),
    Likeness("ssim", MetricInfo("SSIM"), ssim),
    Likeness("ms_ssim", MetricInfo("MS-SSIM"), ms_ssim),
)


def _images(pictures: ArrayLike, references: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, Y, X, 3) -> (B, 3, Y, X), both."""
    shown, wanted = check_pairs(pictures, references)
    return torch.from_numpy(shown).permute(0, 3, 1, 2), torch.from_numpy(wanted).permute(0, 3, 1, 2)


def _each(values: torch.Tensor) -> list[float]:
    """One number for each picture; torchmetrics gives a scalar for a single one."""
    numbers: list[float] = torch.atleast_1d(values).tolist()
    return numbers
