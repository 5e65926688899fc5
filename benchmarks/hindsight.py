"""Decisions judged with hindsight: which reuses hurt, and which computed steps were needless.

The *oracle* is TeaCache's rule (arXiv 2411.19108) with the change of the model's output itself in place of a polynomial
of its input's change: what every choice of coefficients tries to guess. All is worked out on uncached runs that were
watched; no model is run. Changes are (P, steps) tensors, one row a trace; nan where a stage begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralu_cache.temporal.base import Accumulating
from ralu_cache.temporal.policy import Situation
from ralu_cache.temporal.teacache import TeaCache
from ralu_cache.tune.calibration.watch import Trace

HALVINGS = 25  # of the span in which a threshold is sought: as many binary digits as float32 has
UNBOUNDED = 1e30  # a threshold that no sum reaches


@dataclass(frozen=True)
class Judgement:
    """What a policy's decisions on some traces were worth.

    steps: decisions in all, one for each step of each trace; free: those that no rule forced; computed: of all.
    allowed: the oracle's threshold, see `judge`. hurting: reuses although the output had changed by `allowed` or more
    since the last computed step; needless: free steps computed although it had changed by less.
    """

    steps: int
    free: int
    computed: int
    allowed: float
    hurting: int
    needless: int

    @property
    def wrong(self) -> float:
        """Share of the free decisions that hurt or were needless."""
        return (self.hurting + self.needless) / max(self.free, 1)


def judge(policy: TeaCache, traces: Sequence[Trace]) -> Judgement:
    """The policy's decisions on the traces' signals, against the oracle that computes as many steps.

    A threshold means something else under other coefficients, so there is nothing fair to hold it against but its own
    cost: `allowed` is the threshold, one for all traces and stages, at which the oracle computes as many steps as the
    policy did and no more, under the same rules of what must be computed; its own decisions are neither hurting nor
    needless. Changes of the output are added up from step to step since the last step that the policy itself computed,
    this step's included. Raises ValueError for traces of different plans.
    """
    plan, outputs = situations(traces), changes(traces, "output")
    reused = replay(policy, plan, changes(traces, "signal"))
    free = torch.tensor([not policy.forced(situation) for situation in plan]).expand_as(reused)
    computed = int((~reused).sum())
    allowed = threshold_for(oracle(policy), plan, outputs, computed)
    exceeds = stale(reused, outputs) >= allowed
    return Judgement(
        steps=reused.numel(),
        free=int(free.sum()),
        computed=computed,
        allowed=allowed,
        hurting=int((reused & exceeds).sum()),
        needless=int((~reused & free & ~exceeds).sum()),
    )


def oracle(policy: TeaCache) -> TeaCache:
    """The policy's rules, to be fed with changes of the output as they are."""
    return replace(policy, threshold=0.0, coefficients="identity")


def situations(traces: Sequence[Trace]) -> tuple[Situation, ...]:
    """Where the runs stood, step by step. Raises ValueError unless all traces agree."""
    found = {trace.situations for trace in traces}
    if len(found) != 1:
        raise ValueError(f"traces of one plan and number of steps are needed, got {len(found)} different ones")
    return found.pop()


def changes(traces: Sequence[Trace], kind: str) -> Tensor:
    """(P, steps) float32: what the traces say of "signal" or "output"."""
    return torch.tensor([getattr(trace, kind) for trace in traces], dtype=torch.float32)


def replay(policy: Accumulating, plan: Sequence[Situation], changes: Tensor) -> Tensor:
    """(P, steps) bool, True where a step is reused: the policy's decisions if what it looks at changes so."""
    state, readable = policy.start(len(changes), changes.device), torch.ones(len(changes), dtype=torch.bool)
    ages, found = (0,) * len(changes), []
    for now, change in zip(plan, changes.T, strict=True):
        reuse, _ = state.admit(replace(now, ages=ages), change, readable)
        ages = tuple(age + 1 if reused else 0 for age, reused in zip(ages, reuse.tolist(), strict=True))
        found.append(reuse)
    return torch.stack(found, 1)


def threshold_for(policy: Accumulating, plan: Sequence[Situation], changes: Tensor, computed: float) -> float:
    """A threshold at which no more than `computed` of all steps (P, steps) are computed, and as many as can be.

    Of the thresholds that compute equally many, the middle one, which does not hang on a digit of some change; 0 if
    nothing needs to be reused. Raises ValueError where the policy's rules alone ask for more steps.
    """

    def cost(threshold: float) -> int:
        return int((~replay(replace(policy, threshold=threshold), plan, changes)).sum())

    if cost(0.0) <= computed:
        return 0.0
    if (least := cost(UNBOUNDED)) > computed:
        raise ValueError(f"{least} steps must be computed in any case, {computed} were asked for")
    lowest = _lowest(lambda threshold: cost(threshold) <= computed)
    made = cost(lowest)
    return lowest if made == least else (lowest + _lowest(lambda threshold: cost(threshold) < made)) / 2


def _lowest(enough: Callable[[float], bool]) -> float:
    """The lowest positive threshold that is enough, where all higher ones are; found by halving."""
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def stale(reused: Tensor, changes: Tensor) -> Tensor:
    """(P, steps): changes added up since the last computed step before, that step's own included; nan counts as 0."""
    total, found = torch.zeros(len(changes)), []
    for kept, change in zip(reused.T, changes.nan_to_num(0.0).T, strict=True):
        total = total + change
        found.append(total)
        total = torch.where(kept, total, 0.0)
    return torch.stack(found, 1)
