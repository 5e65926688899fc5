"""Likeness of pictures to reference pictures: PSNR and SSIM per picture (extra `metrics`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

try:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
except ImportError as error:
    raise ImportError("PSNR and SSIM need torchmetrics: pip install 'ralu-cache[metrics]'") from error


def psnr(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """Peak signal-to-noise ratio in dB of (B, Y, X, 3) pictures in [0, 1]; infinite for equal ones."""
    values = peak_signal_noise_ratio(
        _batch(pictures), _batch(references), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.tolist()


def ssim(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """Structural similarity of (B, Y, X, 3) pictures in [0, 1]; 1.0 for equal ones."""
    values = structural_similarity_index_measure(_batch(pictures), _batch(references), data_range=1.0, reduction="none")
    return torch.atleast_1d(values).tolist()


def _batch(pictures: ArrayLike) -> torch.Tensor:
    array = np.asarray(pictures, dtype=np.float32)
    if array.ndim != 4:
        raise ValueError(f"expected pictures (B, Y, X, 3), got shape {array.shape}")
    return torch.from_numpy(array).permute(0, 3, 1, 2)
