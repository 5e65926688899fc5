"""What all temporal policies share: the registry, the rules, the forecast; laws of the ledger in parentheses."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache import temporal
from ralu_cache.temporal import (
    Forecast,
    Policy,
    SeaCache,
    Situation,
    TaylorSeer,
    TeaCache,
    register_temporal,
    resolve_temporal,
    temporal_names,
)  # fmt: skip
from ralu_cache.temporal.base import Rules, relative_change
from tests.strategies import situations, told

EAGER = TeaCache(1e6, "identity", transition="inherit", compute_stage_end=False, last=0)  # reuses whenever it may
PLANS = st.lists(st.integers(1, 7), min_size=1, max_size=3)
POLICIES: list[Policy] = [TeaCache(0.3, "identity"), SeaCache(0.3), SeaCache(0.3, order=1), TaylorSeer(3)]


def random_signals(steps: int, batch: int, seed: int = 0) -> list[Tensor]:
    """A slow random walk of (B, 2, 4, 4) images."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(steps, batch, 2, 4, 4, generator=generator).mul(0.15).cumsum(0) + 1)


def computed_steps(policy: Policy, signals: Sequence[Tensor], plan: Sequence[int]) -> Tensor:
    """(steps, B) bool: which steps are computed; residuals are readable as soon as there is one."""
    batch = len(signals[0])
    state, previous, made = policy.start(batch, "cpu"), None, list[Tensor]()
    readable = torch.zeros(batch, dtype=torch.bool)
    for situation, signal in zip(told(situations(*plan), batch, made), signals, strict=True):
        decision = state.decide(situation, None if policy.signal is None else signal, previous, readable)
        previous, readable = decision.signal, torch.ones_like(readable)
        made.append(decision.reuse)
    return ~torch.stack(made)


# ---- the rules


@given(PLANS, st.integers(1, 3), st.integers(0, 3))
def test_first_and_last_steps_and_both_sides_of_a_transition_are_computed(
    plan: list[int], first: int, last: int
) -> None:
    """(5)"""
    made = computed_steps(TeaCache(1e6, "identity", first=first, last=last), random_signals(sum(plan), 2), plan)
    for situation, computed in zip(situations(*plan), made, strict=True):
        edge = situation.step < first or situation.step >= situation.steps - last
        edge = edge or situation.ends_stage or situation.stage_step == 0
        assert (computed == edge).all()


@given(PLANS)
def test_only_the_first_step_is_computed_where_everything_is_permitted(plan: list[int]) -> None:
    made = computed_steps(EAGER, random_signals(sum(plan), 2), plan)
    assert made[0].all() and not made[1:].any()


@given(PLANS, st.integers(0, 5), st.integers(0, 10**6))
def test_every_sample_is_computed_within_max_age_steps(plan: list[int], max_age: int, seed: int) -> None:
    """(5), whatever the distances and even over transitions; 0 and 1 mean every step (4)."""
    policy = TeaCache(
        1e6, "identity", max_age=max_age, transition="inherit", compute_stage_end=False, last=0
    )  # fmt: skip
    made = computed_steps(policy, random_signals(sum(plan), 3, seed), plan)
    window = max(1, max_age)
    assert all(made[k : k + window].any(0).all() for k in range(len(made) - window + 1))
    assert max_age > 1 or made.all()


@given(PLANS, st.integers(0, 10**6))
def test_what_is_not_readable_is_computed(plan: list[int], seed: int) -> None:
    state, previous = EAGER.start(2, "cpu"), None
    signals = random_signals(sum(plan), 2, seed)
    generator = torch.Generator().manual_seed(seed)
    for situation, signal in zip(situations(*plan), signals, strict=True):
        readable = torch.rand(2, generator=generator) < 0.5
        decision = state.decide(situation, signal, previous, readable)
        assert torch.equal(decision.reuse, readable & (situation.step > 0))
        previous = decision.signal


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_sample_alone_decides_as_in_the_batch(policy: Policy) -> None:
    """(6)"""
    signals = random_signals(14, 3)
    together = computed_steps(policy, signals, (6, 8))
    assert not together.all() and (policy.signal is None or not (together == together[:, :1]).all())
    for k in range(3):
        assert torch.equal(computed_steps(policy, [m[k : k + 1] for m in signals], (6, 8)), together[:, k : k + 1])


@pytest.mark.parametrize("policy", [TeaCache(1e6, "identity"), SeaCache(1e6)], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_signal_means_compute_for_that_sample_and_heals(policy: Policy, bad: float) -> None:
    """(9)"""
    signals = random_signals(8, 2)
    signals[3][1, 0, 0, 0] = bad
    made = computed_steps(policy, signals, (8,))
    assert made[:, 0].tolist() == [True, *[False] * 6, True]
    assert made[:, 1].tolist() == [True, False, False, True, True, False, False, True]


def test_a_distance_that_overflows_the_polynomial_means_compute() -> None:
    """(9) Not even where the polynomial turns it into minus infinity."""
    policy = TeaCache(1.0, (-1.0, 0.0, 0.0))
    state, readable = policy.start(1, "cpu"), torch.ones(1, dtype=torch.bool)
    small, large = torch.full((1, 1, 1), 1e-30), torch.full((1, 1, 1), 1e30)
    _, step, *_ = situations(4)
    assert not state.decide(step, large, small, readable).reuse.any()


def test_a_broken_signal_means_compute_even_to_a_policy_that_does_not_look() -> None:
    """(9)"""

    class Careless(Rules):
        @property
        def signal(self) -> str:
            return "canvas"

        def admits(self, situation: Situation, total: Tensor) -> Tensor:
            return torch.ones_like(total, dtype=torch.bool)

    state, readable = Careless().start(2, "cpu"), torch.ones(2, dtype=torch.bool)
    signal = torch.ones(2, 1, 2, 2)
    signal[1] = torch.nan
    assert state.decide(situations(4)[1], signal, torch.ones_like(signal), readable).reuse.tolist() == [True, False]


def test_a_zero_signal_means_compute() -> None:
    signals = [torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)]
    assert computed_steps(TeaCache(1e6, "identity"), signals, (4,)).flatten().tolist() == [True, False, True, True]


def test_without_a_previous_signal_it_computes() -> None:
    state, readable = EAGER.start(2, "cpu"), torch.ones(2, dtype=torch.bool)
    decision = state.decide(situations(4)[1], torch.ones(2, 3, 1), None, readable)
    assert not decision.reuse.any() and decision.distance.isnan().all()


# ---- signals


def test_the_relative_change_of_each_sample() -> None:
    before = torch.tensor([[[1.0, -3.0]], [[2.0, 2.0]], [[0.0, 0.0]]])
    now = torch.tensor([[[2.0, -3.0]], [[2.0, 2.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(relative_change(now, before), torch.tensor([0.25, 0.0, torch.nan]), equal_nan=True)


@given(st.integers(0, 10**6))
def test_permuting_tokens_leaves_distances(seed: int) -> None:
    """(7)"""
    generator = torch.Generator().manual_seed(seed)
    before, now = torch.randn(2, 2, 5, 3, generator=generator)
    order = torch.randperm(5, generator=generator)
    torch.testing.assert_close(relative_change(now[:, order], before[:, order]), relative_change(now, before))


def test_a_forecast_of_some_samples_is_theirs_in_the_whole() -> None:
    history = [(torch.rand(3), torch.randn(3, 4, 2)) for _ in range(3)]
    state = TaylorSeer(order=2).start(3, "cpu")
    whole = state.forecast(history, 0.3)
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        assert torch.equal(state.forecast(history, 0.3, rows), whole[rows])


# ---- names


def test_names_resolve_to_configs() -> None:
    ours = ("forecast", "teacache", "seacache", "taylorseer", "toca", "adaptive")
    assert temporal_names()[:6] == ours  # behind them what other tests of this process registered
    assert resolve_temporal(None) is None
    assert resolve_temporal("teacache") == TeaCache() and resolve_temporal("teacache:0.25") == TeaCache(0.25)
    assert resolve_temporal("seacache:0.5") == SeaCache(0.5) and resolve_temporal("taylorseer:5") == TaylorSeer(5)
    assert resolve_temporal(config := TeaCache(0.6)) is config


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ("taylorseer:5/2/2,first=1,compute_stage_end=false", TaylorSeer((5, 2, 2), first=1, compute_stage_end=False)),
        ("seacache:0.7/0.5,order=0,signal=plane", SeaCache((0.7, 0.5), order=0, signal="plane")),
        ("teacache:coefficients=identity", TeaCache(coefficients="identity")),
        ("forecast:3/2,quantity=clean", Forecast((3, 2), quantity="clean")),
        ("forecast:tolerance=0.2", Forecast(tolerance=0.2)),
        ("teacache:0.4,reuse=prediction", TeaCache(0.4, reuse="prediction")),
        ("teacache:0.3,coefficients=2/0.5/0,transition=inherit", TeaCache(0.3, (2, 0.5, 0), transition="inherit")),
    ],
)
def test_settings_follow_the_name(spec: str, policy: Policy) -> None:
    assert resolve_temporal(spec) == policy


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tea", "unknown temporal policy 'tea'; accepted: None, forecast, teacache, seacache, taylorseer"),
        ("teacache:", "'' is not a number"),
        ("teacache:fast", "'fast' is not a number"),
        ("teacache:0.4/fast", "'0.4/fast' is not a number, nor one for each stage"),
        ("seacache:0.4,ordre=1", r"'ordre=1' is none of its options; accepted: threshold=, beta=, order=, .*signal="),
        ("seacache:0.4,1", "'1' is none of its options"),
        ("seacache:0.4,signal=pixels", "signal must be one of 'canvas', 'plane', got 'pixels'"),
        ("teacache:nan", "threshold must be a finite number of at least 0, got nan"),
        ("taylorseer:2.5", "interval must be an integer of at least 1, got 2.5"),
    ],
)
def test_names_that_do_not_resolve(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_temporal(spec)


def test_what_is_no_policy_is_refused() -> None:
    for wrong in (0.4, TeaCache, object()):
        with pytest.raises(TypeError, match="temporal must be None, a name or a config"):
            resolve_temporal(wrong)  # type: ignore[arg-type]


def test_others_can_register_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_POLICIES", dict(temporal._POLICIES))

    @dataclass(frozen=True)
    class Every:
        period: int = 2
        signal = None
        caches = "stack"
        measures = ()
        transition = "reset"
        max_age = None
        order = 0

        def start(self, batch: int, device: torch.device | str) -> temporal.PolicyState:
            return TaylorSeer(self.period, order=0, first=1).start(batch, device)

    register_temporal("every", Every)
    policy = resolve_temporal("every:3")
    assert policy == Every(3) and "every" in temporal_names()
    assert policy is not None
    made = computed_steps(policy, random_signals(6, 1), (6,)).flatten()
    assert made.tolist() == [True, False, False, True, False, True]
    for taken, message in (("every", "registered already"), ("teacache", "registered already"), ("a:b", "colon")):
        with pytest.raises(ValueError, match=message):
            register_temporal(taken, Every)


# ---- errors


@pytest.mark.parametrize("policy", [TeaCache, SeaCache, TaylorSeer])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("first", (0, -1, 1.0, True, "1", None)),
        ("last", (-1, 0.5, False, "1")),
        ("max_age", (-1, 2.0, True, "3", float("nan"))),
        ("transition", ("keep", None, True)),
        ("compute_stage_end", (1, "yes", None)),
    ],
)
def test_ill_rules_are_refused_with_their_value(policy: type, name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"{name} must be .*, got {value!r}"):
            policy(**{name: value})


@pytest.mark.parametrize("policy", [TeaCache, SeaCache])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "0.4", True, None, (), (0.1, -1), [0.4]])
def test_ill_thresholds_are_refused_with_their_value(policy: type, value: object) -> None:
    with pytest.raises(ValueError, match="threshold must be"):
        policy(threshold=value)


def test_calls_that_do_not_fit_are_refused() -> None:
    state, readable, step = TeaCache().start(2, "cpu"), torch.ones(2, dtype=torch.bool), situations(4)[1]
    with pytest.raises(ValueError, match="signal 'modulated' of 2 samples is needed, got None"):
        state.decide(step, None, None, readable)
    with pytest.raises(ValueError, match=r"of 2 samples is needed, got \(1, 3, 4\)"):
        state.decide(step, torch.ones(1, 3, 4), None, readable)
    with pytest.raises(ValueError, match=r"one layout are needed, got \(2, 3, 4\) after \(2, 6, 4\)"):
        state.decide(step, torch.ones(2, 3, 4), torch.ones(2, 6, 4), readable)
    with pytest.raises(ValueError, match=r"readable must be \(2,\), got \(3,\)"):
        state.decide(step, torch.ones(2, 3, 4), None, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="step 4 of 4"):
        Situation(4, 4, 4, 4, False, 0.5)
    with pytest.raises(ValueError, match="step 4 of 4"):
        Situation(4, 4, 0, 4, False, 0.5)
