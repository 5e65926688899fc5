"""Sharpness and grain of pictures: their mean gradient, and how much of every spatial frequency is in them.

Few steps and coarse ones blur edges and break fine stripes up, which classifiers of content hardly see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ralu_cache.quality.base import Likeness, MetricInfo, check_pairs, check_pictures

BANDS = 12
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
FLOOR = 1e-9
"""Added to a band's power: one grey level of 8 bits, spread over a band, is about 1e-8."""


def mean_gradient(pictures: ArrayLike) -> list[float]:
    """Mean absolute difference of neighbouring pixels of (B, Y, X, 3) pictures in [0, 1], across and down alike."""
    grey = check_pictures(pictures) @ LUMINANCE
    across, down = (np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (2, 1))
    values: list[float] = ((across + down) / 2).tolist()
    return values


def radial_spectrum(pictures: ArrayLike) -> NDArray[np.float64]:
    """Power of the luminance of (B, Y, X, 3) pictures in `BANDS` rings of spatial frequency, (B, BANDS).

    The rings are equally wide, from above 0 to 0.5 cycles a pixel; the corners of the spectrum beyond are left out. A
    Hann window keeps the borders of the picture from counting as edges. Raises ValueError for pictures too small for a
    frequency in every ring.
    """
    grey = check_pictures(pictures) @ LUMINANCE
    height, width = grey.shape[1:]
    window = np.hanning(height)[:, None] * np.hanning(width)
    centred = grey - (grey * window).sum((1, 2), keepdims=True) / window.sum()
    power = np.square(np.abs(np.fft.fft2(centred * window))) / (np.square(window).sum() * height * width)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = np.ceil(radius * 2 * BANDS).astype(int)  # 0 is the mean, 1 to BANDS the rings
    masks = [ring == number for number in range(1, BANDS + 1)]
    if not all(mask.any() for mask in masks):
        raise ValueError(f"pictures of {height}x{width} pixels have no frequency in some of {BANDS} bands")
    return np.stack([power[:, mask].sum(1) for mask in masks], 1)


def spectral_distance(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """Mean difference in dB, whatever its sign, of the bands' power of pictures and references (B, Y, X, 3); 0 is best.

    It sees that stripes have broken up or edges are soft, wherever in the picture.
    """
    shown, wanted = check_pairs(pictures, references)
    ratio = (radial_spectrum(shown) + FLOOR) / (radial_spectrum(wanted) + FLOOR)
    values: list[float] = np.abs(10 * np.log10(ratio)).mean(1).tolist()
    return values


def fine_power(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """Power above a quarter of a cycle a pixel relative to the references', in dB: below 0 is softer than they are."""
    shown, wanted = check_pairs(pictures, references)
    upper = [radial_spectrum(images)[:, BANDS // 2 :].sum(1) + FLOOR for images in (shown, wanted)]
    values: list[float] = (10 * np.log10(upper[0] / upper[1])).tolist()
    return values


SPECTRUM = Likeness("spectrum", MetricInfo("spectral distance", "dB", higher=False), spectral_distance)
