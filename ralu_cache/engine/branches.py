"""Branches: the temporal state of the denoiser calls that compute the same samples, step after step.

With true classifier-free guidance a step computes every picture twice, so a run has two branches, or one of both; what
one has cached is never seen by another. A branch joins a policy, which decides, and a cache, which knows what was
computed when, and what may still be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ralu_cache.engine.cache import BranchCache
from ralu_cache.engine.identity import Identity
from ralu_cache.engine.ranked import agreed
from ralu_cache.engine.signals import signal_of
from ralu_cache.engine.verdict import COMPUTED, Group, Verdict, branch_record, counted, indices_of
from ralu_cache.history.attention import Rows
from ralu_cache.history.feature import Counts, Feature
from ralu_cache.history.layer_cache import Fresh
from ralu_cache.history.ledger import Samples
from ralu_cache.history.residuals import History, extrapolate_uniform
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.report.steps import BranchRecord
from ralu_cache.temporal.base import Counting, RuleState
from ralu_cache.temporal.policy import Policy, PolicyState, Situation, TokenView


class Branch:
    """One branch of one run: plans each call, keeps what was computed, moves it over transitions."""

    def __init__(
        self,
        policy: Policy,
        layout: TokenLayout,
        identity: Identity | None = None,
        denoiser: object = None,
        state: PolicyState | None = None,
        fill: int = 1,
        cache: BranchCache | None = None,
    ) -> None:
        """identity: whom it computes; denoiser: by which model; state, cache: what the policy remembers and what was
        kept, new ones if None. fill: see `Geometry`.
        """
        self.policy = policy
        self.identity = identity or Identity(tuple(range(layout.batch)), {})
        self.denoiser = denoiser
        self.cache = cache or BranchCache(policy, layout, fill)
        self.state = state or policy.start(layout.batch, layout.refined.device)
        self._counts = policy if isinstance(policy, Counting) and policy.caches == "stack" else None
        state = self.state  # whose forecast the host can do alone, if it is the common one
        self._polynomial = isinstance(state, RuleState) and type(state).forecast is RuleState.forecast
        self._situation: Situation
        self._view: TokenView | None = None
        self._verdict: Verdict | None = None
        self._found: Counts = ()  # by the latest call
        self._left: Counts = ()  # behind it
        self._held = 0  # bytes; both are counted anew where something was kept
        self.costs: dict[object, float] = {}  # FLOPs of its calls, by whoever counts them once

    @property
    def layout(self) -> TokenLayout:
        """Of the samples' tokens."""
        return self.cache.layout

    def followed(self, identity: Identity, layout: TokenLayout) -> Branch | None:
        """This branch, or some of its samples as a branch of their own, if they are those of `identity`, on `layout`.

        None if they aren't, or if the policy keeps something that can't be divided.
        """
        rows = identity.rows_in(self.identity)
        if rows is None:
            return None
        if layout is self.layout and rows == [*range(layout.batch)]:
            self.identity = identity
            self.costs.clear()
            return self
        pick = getattr(self.state, "pick", None)
        if pick is None:
            return None
        cache = self.cache.pick(Samples.of(rows, layout.refined.device), layout)
        return Branch(self.policy, layout, identity, self.denoiser, pick(rows), cache=cache)

    # ---- a call

    def plan(
        self,
        situation: Situation,
        modulated: Callable[[], Tensor],
        canvas: Callable[[], Tensor],
        compute: bool = False,
    ) -> Sequence[Group]:
        """Who is computed and who reuses in this call; the computed first. Each sample decides for itself.

        modulated: gives the first block's modulated input (B, n + extra, d); canvas: gives the image (B, C, H, W);
        compute: nothing may be reused in this call, whatever the policy.
        """
        newest, fresh = self.cache.newest, None
        self._found = self._left = self._left or self._marks(newest)
        if self._counts is not None:
            verdict = counted(self._count(self._counts, situation, newest, compute))
        else:
            situation = self._situation = replace(situation, ages=_ages(situation, newest))
            signal = signal_of(self.policy, self.layout, modulated, canvas)
            decision = self.state.decide(situation, signal, self.cache.signal(), self._readable(newest, compute))
            if self.policy.signal is not None:
                decision = agreed(decision)
            self.cache.keep_signal(decision.signal, situation)
            self._held = 0
            fresh, valid = self._select(situation, newest, decision.reuse)
            verdict = Verdict.read(decision, fresh, valid)
        self._verdict, kinds = verdict, verdict.kinds
        if kinds.count("computed") == len(kinds):
            return (COMPUTED,)
        if kinds.count("reused") == len(kinds):
            return (Group(None, self._forecast(situation.sigma, None)),)
        return self._groups(verdict, situation, fresh)

    def record(self, group: Group, residual: Tensor, situation: Situation) -> None:
        """Keep the residual that a group just computed; see `BranchCache.record`."""
        assert self._verdict is not None
        self.cache.record(group, residual, situation, self._verdict.mended)
        self._left, self._held = (), 0

    def rows(self, group: Group, layout: TokenLayout, text: int) -> Rows | None:
        """What the blocks need to know of single tokens, once they run for a group; see `BranchCache.rows`."""
        return self.cache.rows(group, layout, text, None if self._view is None else self._view.ahead)

    def refresh(self, group: Group, text: int, singles: Sequence[bool]) -> tuple[Fresh, Fresh | None]:
        """The image and text tokens of a group for which the MLPs run; see `PolicyState.refresh`."""
        assert self._view is not None
        image, words = self.state.refresh(self._situation, self._view, text, singles)

        def fresh(order: Tensor, counts: tuple[int, ...]) -> Fresh:
            return Fresh(order if group.rows is None else order[group.rows], counts)

        return fresh(*image), None if words is None else fresh(*words)

    def forecast_layer(self) -> tuple[list[Tensor], Callable[[History], Tensor]]:
        """The levels (B,) of the passes that layers were kept of, and what gives one layer's part now."""
        sigma, state = self._situation.sigma, self.state  # no method of ours: it would keep us alive in a cycle
        return self.cache.levels(), lambda nodes: state.forecast(nodes, sigma)

    # ---- between calls

    def transfer(self, layout: TokenLayout, changed: Tensor | None) -> None:
        """A transition to `layout`; see `BranchCache.transfer`."""
        self.cache.transfer(layout, changed)
        self._view, self._left, self._held = None, (), 0
        self.costs.clear()

    def report(self, flops: float = 0.0, saved_flops: float = 0.0) -> Callable[[], BranchRecord]:
        """What was decided in the latest call, what it cost, and how far what is cached now holds; made when read."""
        assert self._verdict is not None
        self._left = self._left or self._marks(self.cache.newest)
        self._held = self._held or self.cache.nbytes
        return partial(branch_record, self._verdict, self._found, self._left, self._held, flops, saved_flops)

    # ---- inner workings

    def _marks(self, newest: Feature | None) -> Counts:
        """Of each sample, its residual's marks counted."""
        return ((self.layout.tokens, 0, 0),) * self.layout.batch if newest is None else newest.counts

    def _count(
        self, policy: Counting, situation: Situation, newest: Feature | None, compute: bool
    ) -> tuple[bool, ...]:
        """Which samples reuse, by a policy that counts."""
        if newest is None or compute:
            return (False,) * self.layout.batch
        before, reuse = situation.step - 1, []
        for marks, taken in zip(self._found, newest.passes, strict=True):
            reuse.append(self.cache.usable(marks) and policy.allows(situation, before - taken[0]))
        return tuple(reuse)

    def _readable(self, newest: Feature | None, compute: bool) -> Tensor:
        """(B,) bool: the samples whose residual may be used; on the host for policies that look at no signal."""
        if self.policy.signal is None:
            usable = self.cache.usable
            return torch.tensor([newest is not None and not compute and usable(count) for count in self._found])
        if newest is None or compute:
            return torch.zeros(self.layout.batch, dtype=torch.bool, device=self.layout.refined.device)
        return newest.readable(inherited=self.cache.inherits)

    def _select(
        self, situation: Situation, newest: Feature | None, reuse: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, n) bool twice: the tokens to compute in samples that reuse, and those whose feature is VALID."""
        if self.policy.caches == "stack" or newest is None:
            return None, None
        view = self._view = self.cache.view(situation, newest)
        chosen = self.state.select(situation, view)
        if chosen is None or reuse.device == chosen.device:
            return None if chosen is None else chosen & reuse[:, None], view.valid
        rows = zip(chosen, reuse.tolist(), strict=True)  # decided on the host: a copy to the device would wait
        return torch.stack([row & reuses for row, reuses in rows]), view.valid

    def _forecast(self, sigma: float, samples: Samples | None) -> Tensor:
        """The residual at a level, of some samples or all."""
        rows = None if samples is None else samples.rows
        nodes = self.cache.uniform(self.policy.order + 1) if self._polynomial else None
        if nodes is None:
            return self.state.forecast(self.cache.history(), sigma, rows)
        residual = extrapolate_uniform(nodes, sigma)
        return residual if rows is None else residual[rows]

    def _groups(self, verdict: Verdict, situation: Situation, fresh: Tensor | None) -> list[Group]:
        """The samples by kind, the computed first: the call itself is made for the first group."""
        kinds = [kind for kind in ("computed", "partial", "reused") if kind in verdict.kinds]
        groups = []
        for kind in kinds:
            samples = None if len(kinds) == 1 else verdict.samples(kind, self.layout.refined.device)
            residual = None if kind == "computed" else self._forecast(situation.sigma, samples)
            if kind != "partial":
                groups.append(Group(samples, residual))
                continue
            assert fresh is not None
            counts = tuple(count for count in verdict.fresh if count)
            chosen = fresh if samples is None else fresh[samples.rows]
            groups.append(Group(samples, residual, indices_of(chosen, counts), counts))
        return groups


def _ages(situation: Situation, newest: Feature | None) -> tuple[int, ...]:
    """See `Situation.ages`."""
    return () if newest is None else tuple(situation.step - 1 - taken.step for taken in newest.passes)
