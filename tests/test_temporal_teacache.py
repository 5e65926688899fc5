"""TeaCache against decisions worked out by hand from the published rule."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.temporal.teacache import FLUX, TeaCache
from tests.strategies import situations


def reused(policy: TeaCache, levels: list[float], *stages: int) -> list[bool]:
    """Decisions for one sample whose signal is a constant that takes these levels."""
    state, previous, result = policy.start(1, "cpu"), None, []
    for situation, level in zip(situations(*stages), levels, strict=True):
        decision = state.decide(situation, torch.full((1, 3, 2), level), previous, torch.ones(1, dtype=torch.bool))
        previous = decision.signal
        result.append(bool(decision.reuse))
    return result


def growing(change: float, steps: int) -> list[float]:
    """A signal that changes by the same share at every step."""
    return [(1 + change) ** k for k in range(steps)]


def test_distances_add_up_from_step_to_step_until_the_threshold() -> None:
    """0.1, 0.2, 0.3 >= 0.25: compute; against the last *computed* step it would have been 0.1, 0.1 + 0.21 already."""
    y, n = True, False
    assert reused(TeaCache(0.25, "identity"), growing(0.1, 9), 9) == [n, y, y, n, y, y, n, y, n]


def test_the_published_rule_as_a_loop() -> None:
    levels = (torch.rand(28, generator=torch.Generator().manual_seed(0)) * 0.3 + 1).tolist()
    total, expected = 0.0, [False]
    for before, now in pairwise(levels[:-1]):
        total += np.polyval(FLUX, abs(now - before) / before)
        expected.append(total < 0.6)
        total = total if total < 0.6 else 0.0
    assert reused(TeaCache(0.6), levels, 28) == [*expected, False]
    assert any(expected)


@given(st.floats(0, 2, width=32))
def test_the_published_polynomial_never_skips_below_its_minimum(change: float) -> None:
    assert not any(reused(TeaCache(0.18), growing(change, 5), 5))
    assert TeaCache().increment(torch.tensor([change])) > 0.18


def test_the_default_reuses_twice_in_a_row_at_most() -> None:
    assert reused(TeaCache(), growing(0.0528, 6), 6) == [False, True, True, False, True, False]


@given(st.floats(-1, 1, width=32), st.sampled_from(["flux", "identity", (-1.0, 0.0), (0.0,)]))
def test_threshold_zero_never_reuses(change: float, coefficients: str | tuple[float, ...]) -> None:
    assert not any(reused(TeaCache(0, coefficients), growing(change, 6), 6))


def test_each_stage_has_its_threshold() -> None:
    policy = TeaCache((0.0, 0.15, 0.25), "identity")
    y, n = True, False
    decisions = reused(policy, growing(0.1, 16), 4, 4, 4, 4)
    assert [decisions[k : k + 4] for k in range(0, 16, 4)] == [[n, n, n, n], [n, y, n, n], [n, y, y, n], [n, y, y, n]]


@pytest.mark.parametrize("value", ["sd3", (), (1.0, float("nan")), (1.0, "2"), (True,), 0.5, None, [1.0, 0.0]])
def test_ill_coefficients_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"coefficients must be"):
        TeaCache(coefficients=value)  # type: ignore[arg-type]
