"""`speedup=`: what is promised is delivered in the call that is made, or refused with what can be had."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache import accelerate
from ralu_cache.models.embedded import TINY_FLUX, TINY_SD3, EmbeddedModel
from ralu_cache.plane.budget import Budget, coarse_cost, wanted_speedup
from tests.surroundings import FAMILIES, one_thread  # noqa: F401


@pytest.mark.parametrize("steps", [20, 28, 50])
@pytest.mark.parametrize("speedup", [2, 4, 6])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_costs_at_least_so_many_times_less(name: str, speedup: float, steps: int) -> None:
    family, pipe = FAMILIES[name], FAMILIES[name].make()
    with accelerate(pipe, speedup=speedup) as handle:
        family.run(pipe, num_inference_steps=steps, height=64, width=96)
        assert handle.report.flop_ratio >= speedup
        assert any(f"speedup={speedup:g}" in notice for notice in handle.report.notices), "said once"


@pytest.mark.parametrize("model", [TINY_FLUX, TINY_SD3])
def test_it_is_not_much_more_than_was_asked_for(model: EmbeddedModel) -> None:
    """The size is the pipeline's own, and the text as long as the model reads it."""
    pipe = model.load()
    pipe.set_progress_bar_config(disable=True)
    with accelerate(pipe, speedup=8) as handle:
        pipe("a red circle", num_inference_steps=49, output_type="latent", max_sequence_length=16)
    assert handle.report is not None and 8 <= handle.report.flop_ratio < 8.5


@given(st.floats(1.01, 40), st.integers(1, 100), st.floats(0.25, 0.9))
def test_a_budget_is_kept_and_not_wasted(speedup: float, steps: int, coarse: float) -> None:
    budget = steps / speedup
    if budget < 1 + coarse:
        with pytest.raises(ValueError, match=r"can't be had.*at most"):
            Budget(speedup).steps(steps, coarse)
        return
    low, fine = Budget(speedup).steps(steps, coarse)
    assert low >= 1 and fine >= 1
    assert low * coarse + fine <= budget + 1e-6
    assert low * coarse + fine > budget - 1.1


@pytest.mark.parametrize(("speedup", "steps"), [(12, (8, 2)), (18, (7, 1)), (8.3, (12, 3))])
def test_it_is_divided_as_the_plans_that_drew_well(speedup: float, steps: tuple[int, int]) -> None:
    """As "ralu-12x" is; half of the budget was fine in "ralu-8x" and "ralu-18x" too."""
    assert Budget(speedup).steps(50, 0.25) == steps


def test_a_coarse_step_costs_a_quarter_and_the_text() -> None:
    assert coarse_cost(400, 0) == 0.25 and coarse_cost(400, 400) == 0.625


@pytest.mark.parametrize("bad", ["fast", True, float("nan"), 0, 1, float("inf"), "-2x"])
def test_what_is_no_speedup_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="speedup must be a number above 1"):
        wanted_speedup(bad)


def test_a_call_of_few_steps_says_the_most_that_can_be_had() -> None:
    family, pipe = FAMILIES["flux"], FAMILIES["flux"].make()
    with accelerate(pipe, speedup="4x"), pytest.raises(ValueError, match=r"speedup=4 can't be had.*at most 3\.\dx"):
        family.run(pipe, num_inference_steps=4)
