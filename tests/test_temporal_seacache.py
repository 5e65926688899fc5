"""SeaCache's filter against what is known of Wiener's, and its distance against noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.temporal.base import relative_change
from ralu_cache.temporal.seacache import SeaCache, axis_gain, plane_gain, spectral_filter
from tests.strategies import situations

SIGMAS = st.floats(0, 1)
SIZES = st.integers(1, 33)


@given(SIZES, SIGMAS, st.sampled_from([0.0, 2.0, 3.0]))
def test_a_gain_is_positive_with_mean_one_and_falls_with_frequency(size: int, sigma: float, beta: float) -> None:
    gain = axis_gain(size, sigma, beta)
    assert gain.isfinite().all() and (gain >= 0).all()
    torch.testing.assert_close(gain.mean(), torch.tensor(1.0, dtype=torch.float64))
    rising = gain[: size // 2 + 1]
    assert (rising.diff() <= 1e-12).all()
    torch.testing.assert_close(gain[1:], gain[1:].flip(0))


def test_the_gain_is_the_published_formula() -> None:
    gain = axis_gain(8, 0.6)
    raw = [0.4 / f**2 / (0.16 / f**2 + 0.36) for f in (1 / 8, 2 / 8, 3 / 8, 4 / 8)]
    torch.testing.assert_close(gain[1:5] / gain[1], torch.tensor(raw, dtype=torch.float64) / raw[0])
    assert float(gain[0] / gain[1]) == pytest.approx(1 / 0.4 / raw[0])


def test_the_gain_is_flat_at_the_end_and_keeps_the_mean_alone_at_the_start() -> None:
    torch.testing.assert_close(axis_gain(16, 0.0), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-6)
    start = axis_gain(16, 1.0)
    assert start[0] == pytest.approx(16) and start[1:].max() < 0.01


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 0.99))
def test_a_wave_is_scaled_by_the_gains_of_its_frequencies(height: int, width: int, sigma: float) -> None:
    rows, columns = torch.arange(height), torch.arange(width)
    for u, v in {(0, 0), (height // 2, width // 2), (1 % height, 2 % width)}:
        phase = 2 * math.pi * (u * rows[:, None] / height + v * columns / width)
        wave = phase.cos().view(1, 1, height, width)
        gain = axis_gain(height, sigma)[u] * axis_gain(width, sigma)[v]
        filtered = spectral_filter(wave, plane_gain(height, width, sigma))
        torch.testing.assert_close(filtered, wave * gain.float(), rtol=1e-4, atol=1e-4)


def change_by_wave(u: int, sigma: float) -> float:
    """Filtered distance between a flat picture and itself with a wave of u periods across 32 pixels."""
    flat = torch.ones(1, 1, 32, 32)
    wave = 0.1 * torch.cos(2 * math.pi * u * (torch.arange(32) + 0.25) / 32).expand_as(flat)
    gain = plane_gain(32, 32, sigma)
    return float(relative_change(spectral_filter(flat + wave, gain), spectral_filter(flat, gain)))


def test_fine_changes_count_less_than_broad_ones_the_more_so_the_noisier() -> None:
    shares = [change_by_wave(12, sigma) / change_by_wave(1, sigma) for sigma in (0.0, 0.5, 0.8, 0.95)]
    assert shares[0] == pytest.approx(1, abs=0.05) and shares[3] < 0.05
    assert shares == sorted(shares, reverse=True)


def test_signals_are_kept_filtered_each_at_its_own_level() -> None:
    policy = SeaCache(10.0)
    state, readable = policy.start(1, "cpu"), torch.ones(1, dtype=torch.bool)
    first, second, *_ = situations(5)
    images = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before = state.decide(first, images[0], None, readable)
    assert before.signal is not None
    assert torch.equal(before.signal, spectral_filter(images[0], plane_gain(8, 8, first.sigma)))
    now = state.decide(second, images[1], before.signal, readable)
    assert now.reuse.all() and now.threshold == 10.0
    expected = relative_change(spectral_filter(images[1], plane_gain(8, 8, second.sigma)), before.signal)
    assert torch.equal(now.distance, expected)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("beta", (-1, float("nan"), "2")), ("order", (2, -1, 0.5, True)), ("eps", (0, float("nan"))),
        ("signal", ("modulated", None)),
    ],
)  # fmt: skip
def test_ill_values_are_refused(name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
            SeaCache(**{name: value})


def test_only_images_are_filtered() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(1, 3, 4\)"):
        spectral_filter(torch.zeros(1, 3, 4), plane_gain(3, 4, 0.5))
