"""Forecasts of residuals from earlier ones, and along the trend that a transition leaves; pure tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.history.residuals import DAMPING, along_trend, extrapolate, extrapolate_uniform, slope

seeds = st.integers(0, 10**6)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seeds)
def test_permuting_tokens_permutes_forecasts(seed: int) -> None:
    """(7)"""
    now, before, oldest, trend = drawn(4, 2, 5, 3, seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    history = [(torch.full((2,), level), values) for level, values in ((0.5, now), (0.7, before), (0.9, oldest))]
    permuted = [(level, values[:, order]) for level, values in history]
    assert torch.equal(extrapolate(permuted, 0.4, 2), extrapolate(history, 0.4, 2)[:, order])
    known = torch.tensor([True, False])
    one = extrapolate(along_trend(history[:1], trend, known), 0.4, 1)[:, order]
    assert torch.equal(extrapolate(along_trend(permuted[:1], trend[:, order], known), 0.4, 1), one)


@given(st.integers(0, 3), st.integers(0, 10**6), st.sampled_from([0.05, 0.4, 0.95]))
def test_polynomials_are_continued_exactly_at_their_order(order: int, seed: int, sigma: float) -> None:
    """Each sample on a polynomial and at levels of its own, also back up in sigma, as after a transition."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(order + 1, 3, 4, 2, generator=generator)
    jitter = torch.rand(order + 1, 3, generator=generator) * 0.1
    levels = 0.8 - 0.2 * torch.arange(order + 1)[:, None] + jitter

    def residual(level: Tensor) -> Tensor:
        return sum((c * level.view(-1, 1, 1) ** k for k, c in enumerate(coefficients)), torch.zeros(3, 4, 2))

    history = [(level, residual(level)) for level in levels]
    forecast = extrapolate(history, sigma, order)
    torch.testing.assert_close(forecast, residual(torch.full((3,), sigma)), rtol=1e-3, atol=2e-3)


def test_too_little_history_lowers_the_order_per_sample() -> None:
    nan = torch.nan
    levels = torch.tensor([[0.5, 0.5, 0.5, 0.5, nan], [0.7, 0.7, 0.5, nan, 0.7], [0.8, 0.7, 0.8, 0.8, 0.8]])
    values = torch.tensor([[1.0] * 5, [3.0] * 5, [7.0] * 5])
    values[1, 3] = torch.inf  # what a sample does not use does it no harm
    history = [(level, row.view(5, 1, 1)) for level, row in zip(levels, values, strict=True)]
    full = 1 - 0.1 * 10 + (-0.1) * (-0.3) * (40 - 10) / 0.3  # Newton's form by hand at 0.4
    expected = torch.tensor([full, 0.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(extrapolate(history, 0.4, 2).flatten(), expected, rtol=0, atol=1e-4)


def test_the_newest_residual_alone_is_returned_as_it_is() -> None:
    values = torch.randn(2, 3, 4).bfloat16()
    history = [(torch.tensor([0.5, torch.nan]), values), (torch.tensor([torch.nan, 0.7]), values + 1)]
    assert extrapolate(history[:1], 0.3, 2) is values
    assert extrapolate(history, 0.3, 0) is values
    assert torch.equal(extrapolate(history, 0.3, 1), values)
    with pytest.raises(ValueError, match="history is empty"):
        extrapolate([], 0.3, 1)


# ---- the trend that goes on behind a transition


@given(seeds, st.floats(0.05, 0.9), st.booleans())
def test_a_slope_is_the_change_with_sigma_of_each_token(seed: int, gap: float, by_token: bool) -> None:
    at_0, change = drawn(2, 3, 4, 2, seed=seed)
    levels = 0.9 - (torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) if by_token else torch.zeros(3, 4))
    nodes = [(level, at_0 + level[..., None] * change) for level in (levels - gap, levels)]
    found, known = slope(*nodes)
    torch.testing.assert_close(found, change, rtol=1e-3, atol=1e-3)
    assert known.all()


def test_a_slope_of_half_precision_is_taken_in_float32() -> None:
    """The difference of two numbers that float16 holds may be more than it holds."""
    for dtype in (torch.float16, torch.bfloat16):
        newest, older = (torch.full((1, 2, 3), value, dtype=dtype) for value in (40000.0, -40000.0))
        change, known = slope((torch.full((1, 2), 0.50), newest), (torch.full((1, 2), 0.53), older))
        assert known.all() and change.dtype == torch.float32
        torch.testing.assert_close(change, (newest.float() - older.float()) / -0.03)


def test_no_slope_is_known_where_a_token_was_not_computed_twice() -> None:
    levels, values = torch.tensor([[0.5, 0.5, torch.nan]]), torch.ones(1, 3, 2)
    found, known = slope((levels, values), (torch.tensor([[0.7, 0.5, 0.7]]), 3 * values))
    assert known.tolist() == [[True, False, False]]
    assert found[0, 0].allclose(torch.tensor(10.0)) and not found[0, 1:].any()


@given(seeds, st.floats(0.05, 0.95), st.integers(1, 3))
def test_what_was_computed_once_goes_on_along_its_trend_damped(seed: int, sigma: float, order: int) -> None:
    values, trend = drawn(2, 3, 4, 2, seed=seed)
    levels = torch.tensor([0.9, 0.8, 0.7])
    known = torch.tensor([True, True, False])
    forecast = extrapolate(along_trend([(levels, values)], trend, known), sigma, order)
    expected = values + DAMPING * trend * (sigma - levels)[:, None, None]
    torch.testing.assert_close(forecast[:2], expected[:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(forecast[2], values[2]), "as it is where no trend is known"


@given(seeds, st.integers(1, 3))
def test_what_was_computed_twice_does_without_a_trend_bit_for_bit(seed: int, order: int) -> None:
    """Sample by sample: the first two have two values of their own, the third one has one."""
    newest, older, trend = drawn(3, 3, 4, 2, seed=seed)
    history = [(torch.tensor([0.5, 0.6, 0.5]), newest), (torch.tensor([0.7, 0.8, torch.nan]), older)]
    forecast = extrapolate(along_trend(history, trend, torch.tensor([True, False, True])), 0.4, order)
    assert torch.equal(forecast[:2], extrapolate(history, 0.4, order)[:2])
    torch.testing.assert_close(forecast[2], newest[2] - 0.1 * DAMPING * trend[2])


@given(
    seeds,
    st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=4),
    st.floats(0.0, 1.0),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_levels_that_the_host_knows_give_the_same_forecast_bit_for_bit(
    seed: int, levels: list[float], sigma: float, dtype: torch.dtype
) -> None:
    """(6) Whether all samples were computed at the same steps or not is no difference to any of them."""
    values = [drawn(2, 3, 4, seed=seed + k).to(dtype) for k in range(len(levels))]
    known = extrapolate_uniform(list(zip(levels, values, strict=True)), sigma)
    history = [(torch.full((2,), level), value) for level, value in zip(levels, values, strict=True)]
    assert torch.equal(known, extrapolate(history, sigma, len(levels) - 1))


def test_a_forecast_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the history is empty"):
        extrapolate_uniform([], 0.5)
