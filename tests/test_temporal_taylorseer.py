"""TaylorSeer's timetable, and its forecasts through a ledger over a change of layout."""

import pytest
import torch

from ralu_cache.canvas import TokenLayout
from ralu_cache.ledger import Ledger
from ralu_cache.temporal.taylorseer import TaylorSeer
from tests.strategies import situations


def timetable(policy: TaylorSeer, *stages: int) -> str:
    """C for computed, r for reused, of a single sample."""
    state, readable = policy.start(1, "cpu"), torch.ones(1, dtype=torch.bool)
    return "".join("r" if state.decide(s, None, None, readable).reuse else "C" for s in situations(*stages))


@pytest.mark.parametrize(
    ("policy", "stages", "expected"),
    [
        (TaylorSeer(), (12,), "CCCrrCrrCrrC"),
        (TaylorSeer(3, first=1), (12,), "CrrCrrCrrCrC"),
        (TaylorSeer(4, first=1, last=0), (9,), "CrrrCrrrC"),
        (TaylorSeer(1), (5,), "CCCCC"),
        (TaylorSeer(3, first=1), (5, 6, 7), "CrrCC" + "CrrCrC" + "CrrCrrC"),
        (TaylorSeer((4, 2), first=1, compute_stage_end=False), (5, 6, 4), "CrrrC" + "CrCrCr" + "CrCC"),
        (TaylorSeer(3, first=1, max_age=2), (5, 4), "CrCrC" + "CrCC"),
        (TaylorSeer(4, first=1, transition="inherit", compute_stage_end=False), (3, 6), "Crr" + "rCrrrC"),
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
    for step, (sigma, rows) in enumerate([(0.9, None), (0.8, torch.tensor([1])), (0.7, torch.tensor([0]))]):
        values = (slopes * sigma) if rows is None else slopes[rows] * sigma
        ledger.record("residual", values, coarse, step, sigma, rows, keep=policy.order + 1)
    torch.testing.assert_close(state.forecast(ledger.history("residual", coarse), 0.5), slopes * 0.5)
    mixed = TokenLayout(torch.tensor([[[True, False]], [[False, True]]]), patch=2)
    ledger.transfer(mixed)
    forecast = state.forecast(ledger.history("residual", mixed, inherited=True), 0.75)
    torch.testing.assert_close(forecast[0], slopes[0, [1, 0, 0, 0, 0]] * 0.75)
    torch.testing.assert_close(forecast[1], slopes[1, [0, 1, 1, 1, 1]] * 0.75)
    strict = ledger.read("residual", mixed)
    assert strict is not None and not strict.readable.any()


@pytest.mark.parametrize(("name", "values"), [("interval", (0, 2.0, "3", True)), ("order", (-1, 1.0, None))])
def test_ill_values_are_refused(name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
            TaylorSeer(**{name: value})
