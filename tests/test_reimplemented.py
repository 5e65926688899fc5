"""Spectrum's and FreqCa's forecasts, reimplemented for the comparison, on numbers that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.regime import reimplemented
from benchmarks.regime.reimplemented import FreqCa, Spectrum, chebyshev_weights, high_band, windows
from ralu_cache import accelerate
from ralu_cache.temporal import Situation
from tests.pipelines import make_pipeline
from tests.pipelines import pictures as drawn

reimplemented.register()


def test_chebyshev_polynomials_without_a_penalty_continue_polynomials() -> None:
    places, now = [14, 11, 9, 6, 5, 2, 0], 17
    curve = np.polynomial.Polynomial([1.0, -0.3, 0.02, 0.001, -0.0002])
    weights = chebyshev_weights(places, now, 50, 4, 0.0, 1.0)
    assert np.dot(weights, curve(np.array(places))) == pytest.approx(curve(now))
    damped = chebyshev_weights(places, now, 50, 4, 0.1, 1.0)
    assert sum(damped) != pytest.approx(1, abs=1e-3), "the ridge shrinks, as published, constants too"


def test_what_is_not_chebyshevs_is_the_line_through_the_last_two() -> None:
    weights = chebyshev_weights([10, 6, 1], 14, 50, 4, 0.1, 0.0)
    assert weights == pytest.approx((2.0, -1.0, 0.0))
    assert sum(chebyshev_weights([3], 5, 50, 4, 0.1, 0.0)) == pytest.approx(1)


def test_windows_grow() -> None:
    computed = [step for step, wanted in enumerate(windows(50, 5, 3.0)) if wanted]
    assert computed == [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]
    assert [step for step, wanted in enumerate(windows(12, 2, 0.0)) if wanted] == [0, 1, 3, 5, 7, 9, 11]


def test_spectrum_computes_at_the_windows_ends_and_forecasts_between() -> None:
    pipe = make_pipeline()
    with accelerate(pipe, temporal="spectrum:1,first=2") as handle:
        pipe(**drawn([0, 1]) | {"num_inference_steps": 9})
    report = handle.report
    assert report is not None
    computed = tuple(step.reused == 0 for step in report.steps)
    assert computed == windows(9, 2, 1.0) and not all(computed)


def test_the_forecast_is_the_weighted_sum_of_all_computed_steps() -> None:
    policy = Spectrum(1.0, first=3)
    state = policy.start(1, "cpu")
    levels = (1.0, 0.9, 0.8, 0.7)
    for step, sigma in enumerate(levels):
        state.decide(Situation(step, 10, step, 10, False, sigma), None, None, torch.tensor([True]))
    values = torch.tensor([[[3.0]]]), torch.tensor([[[2.0]]]), torch.tensor([[[5.0]]])
    history = [(torch.tensor([level]), value) for level, value in zip((0.8, 0.9, 1.0), values, strict=True)]
    weights = chebyshev_weights([2, 1, 0], 3, 10, 4, 0.1, 1.0)
    assert state.forecast(history, 0.7).item() == pytest.approx(np.dot(weights, [3.0, 2.0, 5.0]), rel=1e-5)


def test_the_low_band_is_reused_and_the_high_one_forecast() -> None:
    side = 8
    wave = torch.cos(2 * math.pi * torch.arange(side) / side)
    low, high = wave[:, None].expand(side, side), torch.tensor([1.0, -1.0]).repeat(side // 2).expand(side, side)
    assert high_band(low.reshape(1, -1, 1), 0.25).abs().max() < 1e-5
    torch.testing.assert_close(high_band(high.reshape(1, -1, 1), 0.25), high.reshape(1, -1, 1))
    state = FreqCa(2).start(1, "cpu")
    nodes = [(low * a + high * b).reshape(1, -1, 1) for a, b in ((5.0, 4.0), (3.0, 1.0), (2.0, 0.0))]  # b = t²
    history = [(torch.tensor([level]), node) for level, node in zip((0.8, 0.9, 1.0), nodes, strict=True)]
    torch.testing.assert_close(state.forecast(history, 0.7), (low * 5 + high * 9).reshape(1, -1, 1), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="a square grid of tokens is needed, got 7"):
        high_band(torch.zeros(1, 7, 1), 0.25)


def test_freqca_computes_every_few_steps() -> None:
    pipe = make_pipeline()
    with accelerate(pipe, temporal="freqca:3,first=2") as handle:
        pipe(**drawn([0]) | {"num_inference_steps": 9, "height": 64, "width": 64})
    assert handle.report is not None
    assert [number for number, step in enumerate(handle.report.steps) if not step.reused] == [0, 1, 4, 7]
