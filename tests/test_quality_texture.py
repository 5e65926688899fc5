"""Sharpness and spectrum on pictures whose answer is known."""

import numpy as np
import pytest

from ralu_cache.quality.texture import (
    BANDS,
    SPECTRUM,
    fine_power,
    mean_gradient,
    radial_spectrum,
    spectral_distance,
)

NOISE = np.random.default_rng(0).random((4, 64, 64, 3), np.float32)


def waves(frequency: float, size: int = 64) -> np.ndarray:
    """One picture of vertical stripes, in cycles a pixel."""
    row = 0.5 + 0.4 * np.sin(2 * np.pi * frequency * np.arange(size))
    return np.broadcast_to(row[None, None, :, None], (1, size, size, 3)).astype(np.float32)


def blurred(pictures: np.ndarray) -> np.ndarray:
    return (pictures + np.roll(pictures, 1, 1) + np.roll(pictures, 1, 2) + np.roll(pictures, (1, 1), (1, 2))) / 4


def test_the_mean_gradient_of_a_ramp_is_half_its_slope() -> None:
    ramp = np.broadcast_to(np.linspace(0, 0.63, 64)[None, None, :, None], (1, 64, 64, 3))
    assert mean_gradient(ramp) == pytest.approx([0.005], rel=1e-4)


@pytest.mark.parametrize("frequency", [0.06, 0.15, 0.3, 0.48])
def test_stripes_lie_in_the_band_of_their_frequency(frequency: float) -> None:
    power = radial_spectrum(waves(frequency))[0]
    assert power.argmax() == int(np.ceil(frequency * 2 * BANDS)) - 1
    assert power.max() > 0.8 * power.sum()


def test_power_is_the_variance() -> None:
    """Parseval's, for white noise, of which the square within the rings holds pi / 4."""
    grey = np.repeat(NOISE[..., :1], 3, -1)
    found = radial_spectrum(grey).sum(1).mean()
    assert found == pytest.approx(grey[..., 0].var() * np.pi / 4, rel=0.1)


def test_brightness_does_not_count_and_blur_does() -> None:
    assert spectral_distance(NOISE * 0.5 + 0.1, NOISE * 0.5 + 0.3) == pytest.approx([0] * 4, abs=1e-3)
    assert min(spectral_distance(blurred(NOISE), NOISE)) > 3
    assert max(fine_power(blurred(NOISE), NOISE)) < -3
    assert fine_power(NOISE, blurred(NOISE)) == pytest.approx([-x for x in fine_power(blurred(NOISE), NOISE)])
    assert max(np.subtract(mean_gradient(blurred(NOISE)), mean_gradient(NOISE))) < 0


def test_half_the_amplitude_is_six_decibels_in_every_band() -> None:
    assert SPECTRUM(NOISE / 2, NOISE, [""] * 4) == pytest.approx([6.02] * 4, abs=0.05)


def test_tiny_pictures_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="8x8 pixels have no frequency in some of 12 bands"):
        radial_spectrum(NOISE[:, :8, :8])
    with pytest.raises(ValueError, match="cannot be compared"):
        spectral_distance(NOISE, NOISE[:2])
