"""TaylorSeer's timetable, and its forecasts through a ledger over a change of layout."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.history.ledger import Ledger, Samples
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import map_tokens
from ralu_cache.temporal.taylorseer import TaylorSeer
from tests.strategies import decisions, situations


def timetable(policy: TaylorSeer, *stages: int) -> str:
    """C for computed, r for reused, of a single sample."""
    return "".join("r" if reuse else "C" for reuse in decisions(policy.start(1, "cpu"), 1, situations(*stages)))


@pytest.mark.parametrize(
    ("policy", "stages", "expected"),
    [
        (TaylorSeer(), (12,), "CCrCrrCrrCrC"),
        (TaylorSeer(8, last=0), (25,), "CCrCrrrCrrrrrrrCrrrrrrrCr"),
        (TaylorSeer(99, first=1), (20,), "CrCrrrCrrrrrrrCrrrrC"),
        (TaylorSeer(4, last=2), (12,), "CCrCrrrCrrCC"),
        (TaylorSeer(3, ramp=False, first=3), (12,), "CCCrrCrrCrrC"),
        (TaylorSeer(4, ramp=False, first=1), (9,), "CrrrCrrrC"),
        (TaylorSeer(4, order=0, first=1), (9,), "CrrrCrrrC"),
        (TaylorSeer(1), (5,), "CCCCC"),
        (TaylorSeer(3, first=1), (5, 6, 7), "CrCrC" + "CrCrrC" + "CrCrrCC"),
        (TaylorSeer(4, first=3), (6, 7), "CCCrCC" + "CrCrrrC"),
        (TaylorSeer(3, ramp=False, first=1), (5, 6, 7), "CrrCC" + "CrrCrC" + "CrrCrrC"),
        (TaylorSeer((4, 2), first=1, compute_stage_end=False), (5, 6, 4), "CrCrr" + "CrCrCr" + "CrCC"),
        (TaylorSeer(4, max_age=2), (8,), "CCrCrCrC"),
        (TaylorSeer(4, first=1, transition="inherit", compute_stage_end=False), (4, 6), "CrCr" + "rrCrrC"),
    ],
    ids=str,
)
def test_the_timetable(policy: TaylorSeer, stages: tuple[int, ...], expected: str) -> None:
    assert timetable(policy, *stages) == expected


def test_forecasts_of_residuals_linear_in_sigma_are_exact_and_survive_a_change_of_layout() -> None:
    """Computed, recorded, forecast and transferred as a run does it; both samples at times of their own."""
    policy = TaylorSeer(3, order=1, transition="inherit")
    state, ledger = policy.start(2, "cpu"), Ledger()
    coarse = TokenLayout.coarse(2, 1, 2, patch=2)
    slopes = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    for step, (sigma, sample) in enumerate([(0.9, None), (0.8, 1), (0.7, 0)]):
        rows = None if sample is None else Samples.of([sample], slopes.device)
        values = (slopes * sigma) if rows is None else slopes[rows.rows] * sigma
        ledger.record("residual", values, coarse, step, sigma, rows, keep=policy.order + 1)
    torch.testing.assert_close(state.forecast(ledger.history("residual", coarse), 0.5), slopes * 0.5)
    mixed = TokenLayout(torch.tensor([[[True, False]], [[False, True]]]), patch=2)
    ledger.move(mixed, map_tokens(coarse, mixed))
    forecast = state.forecast(ledger.history("residual", mixed, inherited=True), 0.75)
    torch.testing.assert_close(forecast[0], slopes[0, [1, 0, 0, 0, 0]] * 0.75)
    torch.testing.assert_close(forecast[1], slopes[1, [0, 1, 1, 1, 1]] * 0.75)
    strict = ledger.read("residual", mixed)
    assert strict is not None and not strict.readable.any()


@given(st.integers(1, 12), st.integers(1, 4), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_a_ramped_interval_is_at_most_twice_the_one_before_and_reaches_the_whole(
    interval: int, first: int, stages: list[int]
) -> None:
    """Within every stage; one interval more than `first` full steps and the ramp take is whole."""
    steps = iter(timetable(TaylorSeer(interval, first=first, last=0, compute_stage_end=False), *stages))
    for count in stages:
        computed = [step for step, kind in zip(range(count), steps, strict=False) if kind == "C"]
        gaps = [after - before for before, after in pairwise(computed)]
        assert computed[0] == 0 and max(gaps, default=1) <= max(interval, 1)
        assert all(after <= 2 * before for before, after in pairwise([1, *gaps]))
        grown = first - 1 + 2 * interval
        assert all(after - before == interval for before, after in pairwise(c for c in computed if c >= grown))


@pytest.mark.parametrize(
    ("name", "values"), [("interval", (0, 2.0, "3", True)), ("order", (-1, 1.0, None)), ("ramp", (1, "yes"))]
)
def test_ill_values_are_refused(name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
            TaylorSeer(**{name: value})
