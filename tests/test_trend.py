"""The trend that outlives a transition: per token, in one branch and in whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache import RALU, Adaptive, SeaCache, TaylorSeer, TeaCache, ToCa, accelerate
from ralu_cache.engine.branches import Branch
from ralu_cache.history.residuals import DAMPING
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import map_tokens, take
from ralu_cache.temporal.base import Rules
from ralu_cache.temporal.policy import Situation
from tests.pipelines import call_arguments, make_pipeline
from tests.strategies import chains

ROOT = Path(__file__).parents[1]
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
        means = take(trend, moved.children.flatten(1)).unflatten(1, moved.children.shape[1:]).mean(2)
        trend = torch.cat([means, take(trend, moved.source)[:, layout.coarse_tokens :]], 1)
        branch.transfer(layout, mask)
        value = torch.randn(trend.shape, generator=torch.Generator().manual_seed(seed + k))
        assert run_step(branch, situation(3 * k, k, 0, 0.9), value) is None, "the first step is computed"
        added = run_step(branch, situation(3 * k + 1, k, 1, 0.7), value)
        assert added is not None
        expected = value - 0.2 * DAMPING * trend
        torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-4)


def test_a_sample_that_was_computed_once_keeps_the_trend_that_it_had() -> None:
    """The first sample is computed twice in the middle stage, the second one once; both go on in the last stage."""
    coarse, fine = TokenLayout.coarse(2, 2, 2, patch=2), TokenLayout.fine(2, 2, 2, patch=2)
    branch = Branch(TeaCache(0.5, "identity", first=1, last=0, compute_stage_end=False), coarse)
    drawn = torch.randn(5, 2, fine.tokens, 3, generator=torch.Generator().manual_seed(0))

    def run(where: Situation, signal: tuple[float, float], residual: Tensor) -> dict[int, Tensor]:
        """What each sample got in place of its blocks; those that were computed have `residual`."""
        seen = torch.tensor(signal, dtype=torch.float32)[:, None, None].expand(2, branch.layout.tokens, 1)
        reused = {}
        for group in branch.plan(where, lambda: seen, lambda: seen):
            rows = torch.arange(2) if group.rows is None else group.rows
            if group.residual is None:
                branch.record(group, residual[rows], where)
            else:
                reused |= dict(zip(rows.tolist(), group.residual, strict=True))
        return reused

    first, second = drawn[:2, :, : coarse.tokens]
    assert not run(situation(0, 0, 0, 0.8), (1, 1), first) and not run(situation(1, 0, 1, 0.6), (9, 9), second)
    branch.transfer(fine, None)
    assert not run(situation(2, 1, 0, 0.9), (1, 1), drawn[2])
    assert list(run(situation(3, 1, 1, 0.7), (9, 1), drawn[3])) == [1]
    moved = map_tokens(fine, coarse)
    branch.transfer(coarse, None)
    value = drawn[4, :, : coarse.tokens]
    assert not run(situation(4, 2, 0, 0.95), (1, 1), value)
    own = take((drawn[3] - drawn[2]) / -0.2, moved.children.flatten(1)).unflatten(1, moved.children.shape[1:]).mean(2)
    for sample, trend in ((0, own[0]), (1, (second - first)[1] / -0.2)):
        added = run(situation(5 + sample, 2, 1 + sample, 0.75), (1, 1), value)[sample]
        torch.testing.assert_close(added, value[sample] - 0.2 * DAMPING * trend, rtol=1e-4, atol=1e-4)


def test_the_damping_is_the_one_that_the_study_found() -> None:
    """The largest that was tried at which no policy loses on average."""
    found: dict[float, list[float]] = {}
    for line in (ROOT / "benchmarks" / "results" / "composition" / "damping.md").read_text().splitlines():
        if line.startswith("| `") and " ± " in line:
            _, _, damping, _, gain, *_ = line.split("|")
            found.setdefault(float(damping), []).append(float(gain.split("±")[0]))
    assert len(found) > 3 and max(damping for damping, gains in found.items() if min(gains) >= 0) == DAMPING


def test_it_is_dropped_once_every_sample_was_computed_twice() -> None:
    layout, fine = TokenLayout.coarse(1, 2, 2, patch=2), TokenLayout.fine(1, 2, 2, patch=2)
    branch = Branch(replace(FEW, interval=(2, 2)), layout)
    stage_of_two(branch, 0)
    branch.transfer(fine, None)
    values = torch.zeros(1, fine.tokens, 3)
    for step, held in enumerate((True, True, False, False)):
        run_step(branch, situation(3 + step, 1, step, 0.9 - 0.1 * step), values)
        assert ("trend" in branch.cache.ledger) is held
    peak = 2 * branch.cache.ledger.get("residual", fine).nbytes  # type: ignore[union-attr]
    assert branch.cache.ledger.nbytes == peak, "no more is held than two residuals"


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
