"""ToCa's timetable, its ratios, and the order in which it refreshes tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.temporal.policy import Policy, Situation, TokenView
from ralu_cache.temporal.toca import MEASURED, SCORES, ToCa, layer_ratio
from tests.strategies import decisions, situations

FLUX = (False,) * 19 + (True,) * 38


def view_of(age: Tensor, measure: Tensor | None = None) -> TokenView:
    measured = torch.rand(age.shape) if measure is None else measure
    every = torch.ones_like(age, dtype=torch.bool)
    return TokenView(age.int(), every, every, torch.zeros(age.shape), lambda name: measured)


def at(step: int) -> Situation:
    return Situation(step=step, steps=1000, stage_step=step, stage_steps=1000, ends_stage=False, sigma=0.5)


@pytest.mark.parametrize(
    ("policy", "stages", "expected"),
    [
        (ToCa(), (12,), "CCCrrrCrrrCC"),
        (ToCa(2, first=1, last=0), (6,), "CrCrCr"),
        (ToCa((4, 2), first=1), (5, 5), "CrrrC" + "CrCrC"),
        (ToCa(4, first=1, max_age=2), (5,), "CrCrC"),
        (ToCa(1), (4,), "CCCC"),
    ],
    ids=str,
)
def test_the_timetable(policy: ToCa, stages: tuple[int, ...], expected: str) -> None:
    found = decisions(policy.start(1, "cpu"), 1, situations(*stages))
    assert "".join("r" if reuse else "C" for reuse in found) == expected


def test_it_is_a_policy_that_caches_layers() -> None:
    policy = ToCa()
    assert isinstance(policy, Policy)
    assert (policy.caches, policy.signal, policy.order) == ("layers+rows", None, 0)
    assert policy.measures == ("value",) and ToCa(score="even").measures == ()


def test_ratios_are_the_published_ones_at_the_models_own_depth() -> None:
    assert layer_ratio(0.1, 0, 57, single=False) == pytest.approx(0.1 * 1.5 * 0.4)
    assert layer_ratio(0.1, 56, 57, single=True) == pytest.approx(0.1 * 0.5 * 1.6)
    assert layer_ratio(0.1, 28, 57, single=True) == pytest.approx(0.1 * 1.0 * 1.6)
    assert layer_ratio(0.1, 0, 1, single=None) == pytest.approx(0.15)
    mean = sum(layer_ratio(0.1, layer, 57, single) for layer, single in enumerate(FLUX)) / 57
    assert mean == pytest.approx(0.106, abs=5e-4)


@given(st.floats(0, 1), st.integers(0, 300), st.lists(st.booleans(), min_size=1, max_size=8))
def test_every_layer_has_the_rounded_share(ratio: float, tokens: int, singles: list[bool]) -> None:
    counts = ToCa(ratio=ratio).counts(at(5), tokens, singles)
    mixed = len(set(singles)) > 1
    for layer, (count, single) in enumerate(zip(counts, singles, strict=True)):
        assert count == round(layer_ratio(ratio, layer, len(singles), single if mixed else None) * tokens)
        assert 0 <= count <= tokens


@given(st.sampled_from(SCORES), st.integers(1, 4), st.integers(1, 40), st.floats(0, 1), st.integers(3, 200))
def test_equal_counts_and_a_rank_of_all_tokens(score: str, batch: int, tokens: int, ratio: float, step: int) -> None:
    policy = ToCa(ratio=ratio, score=score)
    view = view_of(torch.randint(1, 5, (batch, tokens)))
    ranked, chosen = policy.rank(at(step), view), policy.select(at(step), view)
    assert torch.equal(ranked.sort(1).values, torch.arange(tokens).expand(batch, -1))
    assert (chosen.sum(1) == round(ratio * tokens)).all()
    assert chosen.gather(1, ranked[:, : round(ratio * tokens)]).all()


@given(st.sampled_from([*MEASURED, "staleness"]), st.integers(2, 30), st.integers(0, 10**6))
def test_choices_by_score_follow_their_tokens(score: str, tokens: int, seed: int) -> None:
    """Permuted tokens give the permuted choice; measures and ages are distinct, so that nothing ties."""
    generator = torch.Generator().manual_seed(seed)
    measure = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(2)]).float() + 1
    age = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(2)]) + 1
    if score != "staleness":
        age = torch.ones_like(age)
    order = torch.randperm(tokens, generator=generator)
    policy = ToCa(ratio=0.3, score=score)
    chosen = policy.select(at(5), view_of(age, measure))
    assert torch.equal(policy.select(at(5), view_of(age[:, order], measure[:, order])), chosen[:, order])


@given(st.sampled_from(MEASURED), st.integers(1, 4), st.integers(2, 20), st.integers(0, 10**6))
def test_a_samples_choice_is_its_own(score: str, batch: int, tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    measure = torch.rand(batch, tokens, generator=generator)
    age = torch.randint(1, 5, (batch, tokens), generator=generator)
    policy = ToCa(ratio=0.4, score=score)
    together = policy.rank(at(5), view_of(age, measure))
    alone = [policy.rank(at(5), view_of(age[[row]], measure[[row]])) for row in range(batch)]
    assert torch.equal(together, torch.cat(alone))


@given(
    st.sampled_from(["even", "round-robin", "staleness"]), st.integers(1, 60), st.floats(0.02, 1), st.integers(3, 99)
)
def test_turns_cover_all_tokens(score: str, tokens: int, ratio: float, step: int) -> None:
    """In ceil(n / m) consecutive steps, whatever the first of them."""
    policy, age = ToCa(ratio=ratio, score=score), torch.ones(1, tokens)
    if not (count := policy.count(at(step), tokens)):
        return
    for later in range(step, step + math.ceil(tokens / count)):
        chosen = policy.select(at(later), view_of(age))
        age = torch.where(chosen, 1, age + 1)
    assert (age <= math.ceil(tokens / count)).all()


def test_even_turns_are_spread_evenly() -> None:
    """Any eighth of 64 tokens: no two within 4 of each other, none further apart than 16."""
    for step in range(3, 11):
        chosen = ToCa(ratio=1 / 8, score="even").select(at(step), view_of(torch.ones(1, 64)))[0]
        gaps = chosen.nonzero()[:, 0].diff()
        assert gaps.min() >= 4
        assert gaps.max() <= 16


def test_random_turns_change_with_the_step_and_leave_the_global_generator_alone() -> None:
    policy, view = ToCa(ratio=0.5, score="random"), view_of(torch.ones(2, 32))
    before = torch.get_rng_state()
    first, again, later = (policy.select(at(step), view) for step in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert torch.equal(first[0], first[1])


def test_age_weighs_against_the_measure() -> None:
    measure, age = torch.tensor([[3.0, 1.0, 1.0, 1.0]]), torch.tensor([[1, 1, 1, 3]])
    view, policy = view_of(age, measure), ToCa(4, 0.25)
    assert policy.rank(at(5), view)[0].tolist() == [0, 3, 1, 2]
    assert replace(policy, staleness=2.0).rank(at(5), view)[0].tolist() == [3, 0, 1, 2]
    assert replace(policy, staleness=0).rank(at(5), view)[0].tolist() == [0, 1, 2, 3]
    nothing = view_of(age, torch.zeros(1, 4))
    assert policy.rank(at(5), nothing)[0].tolist() == [3, 0, 1, 2]


@settings(max_examples=40)
@given(st.sampled_from(SCORES), st.integers(2, 6), st.integers(1, 8), st.floats(0, 1), st.integers(4, 20))
def test_max_age_bounds_the_age_of_every_token(
    score: str, max_age: int, interval: int, ratio: float, steps: int
) -> None:
    """Every token of every sample is computed at least once in any `max_age` consecutive steps."""
    policy = ToCa(interval, ratio, score=score, max_age=max_age)
    state, age = policy.start(2, "cpu"), torch.zeros(2, 10, dtype=torch.int64)
    for situation, reuse in zip(situations(steps), decisions(state, 2, situations(steps)), strict=True):
        age += 1
        chosen = policy.select(situation, view_of(age)) | ~reuse[:, None]
        age[chosen] = 0
        assert (age < max_age).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("interval", (0, 2.0, "3")),
        ("ratio", (-0.1, float("nan"), "0.1", 1.5)),
        ("score", ("size", 1)),
        ("staleness", (-1, float("inf"))),
        ("text", (1,)),
    ],
)
def test_ill_values_are_refused(name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must .*, got {value!r}"):
            ToCa(**{name: value})


def test_the_text_may_stay_as_it_was() -> None:
    assert ToCa(text=False).text is False and ToCa().text is True
