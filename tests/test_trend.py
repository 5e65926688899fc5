"""The trend that outlives a transition: per token, in one branch and in whole runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache import RALU, Adaptive, SeaCache, TaylorSeer, ToCa, accelerate
from ralu_cache.engine.branches import Branch
from ralu_cache.history.residuals import DAMPING
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import map_tokens, take
from ralu_cache.temporal.base import Rules
from ralu_cache.temporal.policy import Situation
from tests.pipelines import call_arguments, make_pipeline
from tests.strategies import chains

FEW = TaylorSeer((2, 9, 9), ramp=False, first=1, last=0, compute_stage_end=False)
PLAN = RALU(steps=(4, 4, 4))
NAMES = ("taylorseer", "seacache", "other")
seeds = st.integers(0, 10**6)


def run_step(branch: Branch, where: Situation, residual: Tensor) -> Tensor | None:
    """One call; what is added in place of the blocks, or None where they ran and gave `residual` (B, n, d)."""
    (group,) = branch.plan(where, lambda: residual, lambda: residual)
    if group.residual is None:
        branch.record(group, residual, where)
    return group.residual


def situation(step: int, stage: int, stage_step: int, sigma: float) -> Situation:
    return Situation(step, 99, stage_step, 9, False, sigma, stage)


def stage_of_two(branch: Branch, seed: int) -> tuple[Tensor, Tensor]:
    """A stage in which all is computed at sigma 0.8 and 0.6; gives the residuals' change with sigma."""
    shape = branch.layout.batch, branch.layout.tokens, 3
    first, second = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    run_step(branch, situation(0, 0, 0, 0.8), first)
    assert run_step(branch, situation(1, 0, 1, 0.7), first) is not None
    run_step(branch, situation(2, 0, 2, 0.6), second)
    return (second - first) / -0.2, torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))


@given(chains(3), seeds, st.booleans())
def test_each_token_goes_on_along_its_own_trend_or_its_parents(
    chain: list[TokenLayout], seed: int, changed: bool
) -> None:
    """KEPT, SPLIT and MERGED tokens, also through a stage that computes once, and where noise was changed."""
    branch = Branch(FEW, chain[0])
    trend, _ = stage_of_two(branch, seed)
    for k, layout in enumerate(chain[1:], 1):
        moved = map_tokens(branch.layout, layout)
        mask = torch.ones(layout.batch, layout.tokens, dtype=torch.bool) if changed else None
        merged = moved.kind == 2
        trend = take(trend, moved.source)
        branch.transfer(layout, mask)
        value = torch.randn(trend.shape, generator=torch.Generator().manual_seed(seed + k))
        assert run_step(branch, situation(3 * k, k, 0, 0.9), value) is None, "the first step is computed"
        added = run_step(branch, situation(3 * k + 1, k, 1, 0.7), value)
        assert added is not None
        expected = value - 0.2 * DAMPING * trend
        torch.testing.assert_close(added[~merged], expected[~merged], rtol=1e-4, atol=1e-4)
        if merged.any():  # of whose four trends the mean goes on
            held = branch.ledger.get("trend", layout)
            assert held is not None
            trend = held.values


def test_it_is_dropped_once_every_sample_was_computed_twice() -> None:
    layout, fine = TokenLayout.coarse(1, 2, 2, patch=2), TokenLayout.fine(1, 2, 2, patch=2)
    branch = Branch(replace(FEW, interval=(2, 2)), layout)
    stage_of_two(branch, 0)
    branch.transfer(fine, None)
    values = torch.zeros(1, fine.tokens, 3)
    for step, held in enumerate((True, True, False, False)):
        run_step(branch, situation(3 + step, 1, step, 0.9 - 0.1 * step), values)
        assert ("trend" in branch.ledger) is held
    peak = 2 * branch.ledger.get("residual", fine).nbytes  # type: ignore[union-attr]
    assert branch.ledger.nbytes == peak, "no more is held than two residuals"


@pytest.mark.parametrize("policy", [FEW, SeaCache(1e6, max_age=2), Adaptive((2, 9, 9))], ids=NAMES)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_run_takes_another_path_than_one_that_resets_at_the_same_cost(policy: Rules, guidance: float) -> None:
    pipe, found, flops = make_pipeline(), [], []
    for transition in ("trend", "reset"):
        with accelerate(pipe, spatial=PLAN, temporal=replace(policy, transition=transition)) as handle:
            found.append(pipe(**call_arguments(true_cfg_scale=guidance)).images)
            flops.append(handle.report.flops)
    assert not torch.equal(*found) and flops[0] == flops[1]


@pytest.mark.parametrize(
    "policy", [TaylorSeer(2, order=0), SeaCache(0.8, order=0), TaylorSeer(2, per_layer=True)], ids=NAMES
)
def test_without_a_forecast_of_the_stack_it_is_a_reset(policy: Rules) -> None:
    pipe, found = make_pipeline(), []
    for transition in ("trend", "reset"):
        with accelerate(pipe, spatial=PLAN, temporal=replace(policy, transition=transition)):
            found.append(pipe(**call_arguments()).images)
    assert torch.equal(*found)


def test_what_does_not_forecast_refuses_it() -> None:
    with pytest.raises(ValueError, match="transition must be one of 'reset', 'inherit', got 'trend'"):
        ToCa(transition="trend")
