"""Adaptive's timetable, and which tokens it refreshes in which step; laws of the ledger in parentheses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.temporal.adaptive import SCORES, Adaptive
from ralu_cache.temporal.policy import MEASURES, TRANSITIONS, Policy, Situation, TokenView
from tests.strategies import situations, told

BETWEEN = Situation(3, 12, 3, 12, False, 0.5)  # a step that no interval above 1 but 3 computes
DUE = Situation(4, 12, 4, 12, False, 0.5)
EVEN = partial(Adaptive, ramp=False)
seeds = st.integers(0, 10**6)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 40))


def view_of(batch: int, tokens: int, seed: int = 0, **given: Any) -> TokenView:
    """All tokens computed for themselves in the step before, below the present level; measures all different."""
    generator = torch.Generator().manual_seed(seed)
    every = torch.ones(batch, tokens, dtype=torch.bool)
    measures = {name: torch.rand(batch, tokens, generator=generator) for name in sorted(MEASURES)}
    fields = {"age": every.int(), "valid": every, "kept": every, "ahead": -0.1 * every, "measure": measures.__getitem__}
    return TokenView(**(fields | given))


def drawn(batch: int, tokens: int, seed: int) -> Tensor:
    """(B, n) bool"""
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed)) < 0.5


def timetable_of(policy: Adaptive, *stages: int, tokens: int = 10) -> str:
    """C: all computed, 0 to 9: so many of ten tokens; all are KEPT over every transition."""
    state, timetable = policy.start(1, "cpu"), ""
    step, level = torch.zeros(1, tokens), torch.full((1, tokens), torch.nan)
    found: list[Tensor] = []
    for here in told(situations(*stages), 1, found):
        reuse = state.decide(here, None, None, torch.tensor([here.step > 0])).reuse
        view = view_of(1, tokens, age=here.step - step, ahead=here.sigma - level)
        fresh = state.select(here, view) if reuse else torch.ones(1, tokens, dtype=torch.bool)
        found.append(reuse & ~fresh.all())
        timetable += "C" if fresh.all() else str(int(fresh.sum()))
        step, level = step.masked_fill(fresh, here.step), level.masked_fill(fresh, here.sigma)
    return timetable


@pytest.mark.parametrize(
    ("policy", "stages", "expected"),
    [
        (Adaptive(), (8,), "C0C0C0C0"),
        (Adaptive(last=1), (8,), "C0C0C0CC"),
        (Adaptive(4, order=0), (6,), "C000C0"),
        (Adaptive(1, ratio=0.5), (6,), "CCCCCC"),
        (Adaptive(3, max_age=1), (4,), "CCCC"),
        (EVEN(3, ratio=0.2), (9,), "C22C22C22"),
        (EVEN(4, ratio=1.0), (6,), "CCCCCC"),
        (EVEN(4, ratio=0.3, first=3), (8,), "CCC3C333"),
        (EVEN((4, 2), ratio=(0.1, 0.4)), (5, 4, 3), "C111C" + "C4C4" + "C4C"),
        (EVEN(9, ratio=0.1, max_age=3), (8,), "C11C11C1"),
        # with a ramp, and a coarse first stage left to its forecast
        (Adaptive(3, ratio=0.2), (9,), "C2C22C22C"),
        (Adaptive(4), (6, 7), "C0C000" + "C0C000C"),
        (Adaptive((4, 4)), (6, 7), "C0C000" + "C0C000C"),
        (Adaptive(2), (5, 4), "C0C00" + "C0C0"),
        (Adaptive((2, 2)), (5, 4), "C0C0C" + "C0C0"),
        (EVEN(3, ratio=0.3), (5, 4), "C3333" + "C33C"),
        (Adaptive(1), (3, 2), "CCCCC"),
        # levels 1, .75, .5, .25, then .5, .4, .3, .2, .1: all wait until sigma is below that of their last computation
        (EVEN((2,), transition="kept"), (4, 5), "C0C0" + "C0C0C"),
        (EVEN((2,), transition="kept", compute_stage_end=True), (4, 5), "C0CC" + "0000C"),
        (EVEN((2,), ratio=0.2, transition="kept", compute_stage_end=True), (4, 5), "C2CC" + "0222C"),
        (Adaptive(1, transition="kept"), (4, 5), "CCCC" + "000CC"),
        (EVEN((2,), transition="inherit"), (4, 4), "C0C0" + "C0C0"),
    ],
    ids=str,
)
def test_the_timetable(policy: Adaptive, stages: tuple[int, ...], expected: str) -> None:
    assert timetable_of(policy, *stages) == expected


@given(shapes, st.floats(0, 1), st.sampled_from(SCORES), seeds)
def test_between_computed_steps_the_highest_scores_are_refreshed(
    shape: tuple[int, int], ratio: float, score: str, seed: int
) -> None:
    view = view_of(*shape, seed, age=torch.randint(1, 9, shape, generator=torch.Generator().manual_seed(seed)))
    chosen = Adaptive(9, ratio=ratio, score=score).select(BETWEEN, view)
    count = round(ratio * shape[1])
    assert (chosen.sum(1) == count).all()
    ranked = {"staleness": view.age, "region": view.age}.get(score)
    if score in MEASURES:
        ranked = view.measure(score)
    if ranked is not None and 0 < count < shape[1]:
        floor = torch.where(chosen, ranked, ranked.max()).amin(1)
        assert (floor >= torch.where(chosen, 0, ranked).amax(1)).all()


@given(shapes, seeds)
def test_the_region_score_refreshes_what_the_transition_left_as_it_was_first(shape: tuple[int, int], seed: int) -> None:
    kept = drawn(*shape, seed)
    chosen = Adaptive(9, ratio=0.5, score="region").select(BETWEEN, view_of(*shape, seed, kept=kept))
    assert not ((chosen & ~kept).any(1) & (kept & ~chosen).any(1)).any()


@given(shapes, seeds)
def test_random_tokens_are_others_at_each_step_and_the_same_in_each_sample(shape: tuple[int, int], seed: int) -> None:
    policy, state = Adaptive(99, ratio=0.5, score="random"), torch.random.get_rng_state()
    steps = [Situation(step, 99, step, 99, False, 0.5) for step in range(1, 9)]
    chosen = [policy.select(step, view_of(*shape, seed)) for step in steps]
    alone = [policy.select(step, view_of(1, shape[1])) for step in steps]
    for mine, one in zip(chosen, alone, strict=True):
        assert torch.equal(mine, one.expand(shape))
    assert shape[1] < 4 or len({tuple(mine[0].tolist()) for mine in chosen}) > 1
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"


@given(shapes, st.sampled_from(TRANSITIONS), st.sampled_from([BETWEEN, DUE]), seeds)
def test_what_was_not_computed_for_the_token_is_computed_unless_inherited(
    shape: tuple[int, int], transition: str, where: Situation, seed: int
) -> None:
    """(3)"""
    valid = drawn(*shape, seed)
    policy = Adaptive(2, transition=transition)
    chosen = policy.select(where, view_of(*shape, valid=valid, ahead=torch.full(shape, 0.1)))
    assert torch.equal(chosen, torch.zeros(shape, dtype=torch.bool) if transition == "inherit" else ~valid)


@given(shapes, seeds)
def test_in_a_computed_step_kept_tokens_wait_at_levels_they_have_seen(shape: tuple[int, int], seed: int) -> None:
    kept, seen = drawn(*shape, seed), drawn(*shape, seed + 1)
    view = view_of(*shape, kept=kept, ahead=torch.where(seen, 0.1, -0.1))
    assert torch.equal(Adaptive(2, transition="kept").select(DUE, view), ~(kept & seen))


@given(shapes, st.sampled_from(sorted(set(SCORES) & set(MEASURES))), st.floats(0, 1), seeds)
def test_permuting_tokens_permutes_the_choice(shape: tuple[int, int], score: str, ratio: float, seed: int) -> None:
    """(7)"""
    policy, order = Adaptive(9, ratio=ratio, score=score), torch.randperm(shape[1])
    view = view_of(*shape, seed)
    permuted = view_of(*shape, measure=lambda name: view.measure(name)[:, order])
    assert torch.equal(policy.select(BETWEEN, permuted), policy.select(BETWEEN, view)[:, order])


@given(shapes, st.sampled_from(SCORES), seeds)
def test_a_sample_chooses_as_if_alone(shape: tuple[int, int], score: str, seed: int) -> None:
    """(6)"""
    policy, view = Adaptive(9, ratio=0.4, score=score), view_of(*shape, seed)
    alone = view_of(1, shape[1], measure=lambda name: view.measure(name)[-1:])
    assert torch.equal(policy.select(BETWEEN, alone), policy.select(BETWEEN, view)[-1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval must be an integer of at least 1, got 0"),
        ({"interval": (2, 1.5)}, r"got 1\.5"),
        ({"interval": ()}, r"one for each stage, got \(\)"),
        ({"ratio": 1.5}, r"ratio must .*1.*, got 1\.5"),
        ({"ratio": (0.2, -0.1)}, r"ratio must .*got -0\.1"),
        ({"ratio": float("nan")}, "ratio must .*got nan"),
        ({"ratio": "0.3"}, "ratio must .*got '0.3'"),
        ({"score": "attention"}, "score must be one of 'region', .*, got 'attention'"),
        ({"order": -1}, "order must be an integer of at least 0, got -1"),
        ({"transition": "keep"}, "'reset', 'trend', 'inherit', 'kept', got 'keep'"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptive(**settings)


def test_keys_and_values_are_kept_only_where_some_tokens_may_run_alone() -> None:
    rows = [Adaptive(ratio=0.1), Adaptive(ratio=(0.0, 0.2)), Adaptive(transition="kept")]
    stack = [Adaptive(), Adaptive(ratio=(0.0, 0)), Adaptive(transition="inherit")]
    assert [policy.caches for policy in rows + stack] == ["rows"] * 3 + ["stack"] * 3
    assert all(isinstance(policy, Policy) and policy.signal is None for policy in rows + stack)
