"""How smoothly what videos show moves: its spectrum over time, and jitter, beside the full run's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STILL = 1e-6  # power of a thousandth of the brightness, below what 8 bits show


def motion_spectrum(video: NDArray[Any]) -> NDArray[np.float64]:
    """Power of the differences between neighbouring frames (F, Y, X, 3) at each frequency over time, mean over pixels.

    Frequencies 0 to half a cycle a frame, F // 2 of them for F - 1 differences, or one more.
    """
    differences = np.diff(np.asarray(video, np.float64), axis=0)
    power: NDArray[np.float64] = np.square(np.abs(np.fft.rfft(differences, axis=0))).mean((1, 2, 3))
    return power


def spectrum_distance(video: NDArray[Any], full: NDArray[Any]) -> float:
    """Mean over frequencies of |10 log10| of the ratio of both videos' `motion_spectrum`, dB.

    0 is as smooth, at every pace, whatever moves where.
    """
    mine, wanted = (motion_spectrum(each) + STILL for each in (video, full))
    return float(np.abs(10 * np.log10(mine / wanted)).mean())


def jitter(video: NDArray[Any]) -> float:
    """The mean squared second difference over time of the pixels (F, Y, X, 3); what flickers has more."""
    return float(np.square(np.diff(np.asarray(video, np.float64), 2, 0)).mean())
