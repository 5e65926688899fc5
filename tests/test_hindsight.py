"""Decisions judged with hindsight: against cases worked out by hand, and what must hold for any."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hindsight import judge, oracle, replay, stale, threshold_for
from ralu_cache import TeaCache
from ralu_cache.tune.calibration.watch import Trace
from tests.strategies import situations

NAN = float("nan")
RULE = TeaCache(0.0, "identity")


def trace(signal: list[float], output: list[float], *stages: int) -> Trace:
    return Trace(tuple(situations(*(stages or (len(signal),)))), tuple(signal), tuple(output))


@st.composite
def traces(draw: st.DrawFn) -> list[Trace]:
    """A few traces of one plan; the signal is another guess at the output's changes."""
    stages = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    count = sum(stages)
    numbers = st.lists(st.integers(0, 64).map(lambda k: k / 64), min_size=count, max_size=count)
    starts = [sum(stages[:k]) for k in range(len(stages))]

    def row() -> list[float]:
        return [NAN if k in starts else value for k, value in enumerate(draw(numbers))]

    return [trace(row(), row(), *stages) for _ in range(draw(st.integers(1, 3)))]


def test_hurting_and_needless_by_hand() -> None:
    """The signal sees a jump where there is none (step 2), and none where the output jumps (step 4)."""
    seen = trace([NAN, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1], [NAN, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1])
    policy = replace(RULE, threshold=0.5)
    reused = replay(policy, seen.situations, torch.tensor([seen.signal]))
    assert reused.tolist() == [[False, True, False, True, True, True, False]]
    assert stale(reused, torch.tensor([seen.output]))[0].tolist() == pytest.approx([0, 0.1, 0.2, 0.1, 1.0, 1.1, 1.2])
    verdict = judge(policy, [seen])
    assert (verdict.steps, verdict.free, verdict.computed) == (7, 5, 3)
    assert verdict.allowed == pytest.approx(0.8), "above 0.3 step 3 is reused, above 1.3 step 5 as well"
    assert (verdict.hurting, verdict.needless, verdict.wrong) == (2, 1, 3 / 5)


def test_the_middle_of_the_thresholds_that_cost_the_same() -> None:
    """Above a quarter every second step is reused, above two quarters two in three."""
    changes = torch.full((1, 7), 0.25)
    assert threshold_for(RULE, situations(7), changes, 4) == pytest.approx(0.375)
    assert threshold_for(RULE, situations(7), changes, 7) == 0
    with pytest.raises(ValueError, match="2 steps must be computed in any case, 1 were asked for"):
        threshold_for(RULE, situations(7), changes, 1)


@settings(max_examples=20)
@given(traces(), st.floats(0, 3))
def test_an_oracle_of_the_same_cost_is_right_at_its_own_threshold(seen: list[Trace], threshold: float) -> None:
    knowing = [replace(one, signal=one.output) for one in seen]
    allowed = judge(replace(RULE, threshold=threshold), knowing).allowed
    verdict = judge(replace(RULE, threshold=allowed), knowing)
    assert (verdict.hurting, verdict.needless, verdict.wrong) == (0, 0, 0)


@settings(max_examples=20)
@given(traces(), st.floats(0, 3))
def test_counts_stay_in_their_bounds(seen: list[Trace], threshold: float) -> None:
    policy = TeaCache(threshold, (0.5, 0.25, 0.0))
    verdict = judge(policy, seen)
    plan, output = seen[0].situations, torch.tensor([one.output for one in seen])
    assert verdict.computed == int((~replay(policy, plan, torch.tensor([one.signal for one in seen]))).sum())
    assert int((~replay(replace(oracle(policy), threshold=verdict.allowed), plan, output)).sum()) <= verdict.computed
    assert 0 <= verdict.hurting <= verdict.steps - verdict.computed
    assert 0 <= verdict.needless <= verdict.computed - (verdict.steps - verdict.free)


def test_traces_of_two_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="one plan and number of steps are needed, got 2"):
        judge(RULE, [trace([NAN] * 3, [NAN] * 3), trace([NAN] * 4, [NAN] * 4)])
