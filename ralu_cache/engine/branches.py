"""Branches: the temporal state of the denoiser calls that compute the same samples, step after step.

With true classifier-free guidance a step computes every picture twice, so a run has two branches, or one of both; what
one has cached is never seen by another. A branch joins a policy, which decides, and a ledger, which knows what was
computed when, and what may still be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ralu_cache.engine.identity import Identity
from ralu_cache.engine.ranked import agreed
from ralu_cache.engine.signals import measured, signal_of, view_of
from ralu_cache.engine.verdict import COMPUTED, Group, Verdict, branch_record, counted, indices_of
from ralu_cache.history.attention import KeyValueMemory, Rows
from ralu_cache.history.feature import Counts, Feature
from ralu_cache.history.layer_cache import Fresh, LayerCache
from ralu_cache.history.ledger import Ledger, Samples
from ralu_cache.history.marks import Mark
from ralu_cache.history.residuals import History, extrapolate_uniform
from ralu_cache.history.trends import RESIDUAL, TREND, residual_history, token_gaps, trend_of
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, map_tokens, take
from ralu_cache.report.record import BranchRecord
from ralu_cache.temporal.base import Counting, RuleState
from ralu_cache.temporal.policy import Policy, PolicyState, Situation, TokenView

SIGNAL = "signal"


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
    ) -> None:
        """identity: whom it computes; denoiser: by which model; state: what the policy remembers, a new one if None.

        fill: see `Geometry`.
        """
        self.fill = fill
        self.policy = policy
        self.layout = layout
        self.identity = identity or Identity(tuple(range(layout.batch)), {})
        self.denoiser = denoiser
        self.ledger = Ledger()
        self.state = state or policy.start(layout.batch, layout.refined.device)
        self.memory: KeyValueMemory | None = None
        self.layers: LayerCache | None = None
        self._forget()
        self._inherit = policy.transition in ("inherit", "kept")
        self._counts = policy if isinstance(policy, Counting) and policy.caches == "stack" else None
        state = self.state  # whose forecast the host can do alone, if it is the common one
        self._polynomial = isinstance(state, RuleState) and type(state).forecast is RuleState.forecast
        self._kept: Tensor | None = None
        self._situation: Situation
        self._view: TokenView | None = None
        self._previous: Tensor | None = None
        self._verdict: Verdict | None = None
        self._found: Counts = ()  # by the latest call
        self._held = 0  # bytes
        self.costs: dict[object, float] = {}  # FLOPs of its calls, by whoever counts them once

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
        samples = Samples.of(rows, layout.refined.device)
        index = samples.rows
        part = Branch(self.policy, layout, identity, self.denoiser, pick(rows), self.fill)
        part.ledger = self.ledger.pick(samples, layout)
        part.memory = None if self.memory is None else self.memory.pick(index, layout)
        part.layers = None if self.layers is None else self.layers.pick(index, layout)
        part._previous = None if self._previous is None else self._previous[index]
        part._kept = None if self._kept is None else self._kept[index]
        return part

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
        nodes = self.ledger.nodes(RESIDUAL, self.layout)
        newest, fresh = nodes[0] if nodes else None, None
        self._found = ((self.layout.tokens, 0, 0),) * self.layout.batch if newest is None else newest.counts
        if self._counts is not None:
            verdict = counted(self._count(self._counts, situation, newest, compute))
        else:
            situation = self._situation = replace(situation, ages=_ages(situation, newest))
            signal = signal_of(self.policy, self.layout, modulated, canvas)
            decision = self.state.decide(situation, signal, self._last_signal(), self._readable(newest, compute))
            if self.policy.signal is not None:
                decision = agreed(decision)
            self._keep_signal(decision.signal, situation)
            fresh, valid = self._select(situation, newest, decision.reuse)
            verdict = Verdict.read(decision, fresh, valid)
        self._verdict, kinds = verdict, verdict.kinds
        if kinds.count("computed") == len(kinds):
            return (COMPUTED,)
        if kinds.count("reused") == len(kinds):
            return (Group(None, self._forecast(situation.sigma, None)),)
        return self._groups(verdict, situation, fresh)

    def record(self, group: Group, residual: Tensor, situation: Situation) -> None:
        """Keep the residual that a group just computed, (k, n + extra, d), or (k, m, d) of its tokens alone.

        Where layers are cached it is of all tokens in any case, and those of the group are kept.
        """
        keep, step, sigma = self.policy.order + 1, situation.step, situation.sigma
        if group.tokens is None:
            self.ledger.record(RESIDUAL, residual, self.layout, step, sigma, group.samples, keep)
        else:
            if self.layers is not None:
                residual = take(residual, group.tokens)
            samples = group.samples or Samples.of(range(self.layout.batch), residual.device)
            known = self._mended(samples)
            self.ledger.record_tokens(
                RESIDUAL, residual, self.layout, step, sigma, samples.rows, group.tokens, keep, known
            )
        if TREND in self.ledger:
            older = self.ledger.get(RESIDUAL, self.layout, 1)
            if older is not None and all(taken.step >= 0 for taken in older.passes):
                self.ledger.drop(TREND)  # every sample has a trend of its own

    def rows(self, group: Group, layout: TokenLayout, text: int) -> Rows | None:
        """What the blocks need to know to remember keys and values, and to run some tokens alone, once they run for it.

        None where they do not run, or nothing is remembered. layout: of the call; text: its text tokens. Raises
        StaleFeature if the memory has another layout.
        """
        if self.memory is None or not group.computes:
            return None
        self.memory.check(layout)
        ahead = torch.zeros(layout.batch, layout.tokens, device=layout.refined.device)
        ahead, gap = ahead if self._view is None else self._view.ahead, token_gaps(self.ledger, layout)
        if group.rows is not None:
            ahead, gap = ahead[group.rows], gap[group.rows]
        return self.memory.begin(text, ahead, gap, group.rows, group.tokens, group.counts)

    def refresh(self, group: Group, text: int, singles: Sequence[bool]) -> tuple[Fresh, Fresh | None]:
        """The image and text tokens of a group for which the MLPs run; see `PolicyState.refresh`."""
        assert self._view is not None
        image, words = self.state.refresh(self._situation, self._view, text, singles)

        def fresh(order: Tensor, counts: tuple[int, ...]) -> Fresh:
            return Fresh(order if group.rows is None else order[group.rows], counts)

        return fresh(*image), None if words is None else fresh(*words)

    def forecast_layer(self) -> tuple[list[Tensor], Callable[[History], Tensor]]:
        """The levels (B,) of the passes that layers were kept of, and what gives one layer's part now."""
        history = self.ledger.history(RESIDUAL, self.layout, inherited=self._inherit)
        sigma, state = self._situation.sigma, self.state  # no method of ours: it would keep us alive in a cycle
        return [level for level, _ in history], lambda nodes: state.forecast(nodes, sigma)

    # ---- between calls

    def transfer(self, layout: TokenLayout, changed: Tensor | None) -> None:
        """A transition to `layout`: "inherit" carries everything over, "reset" forgets it, "trend" all but one thing.

        Where layers or their keys and values are kept, and another number of padding tokens comes in, all begins anew.
        changed: (B, n) bool, the tokens of `layout` into which fresh noise was mixed.
        """
        moved = map_tokens(self.layout, layout)
        self._kept = moved.kind == Kind.KEPT
        padded_alike = (layout.tokens - self.layout.tokens) % self.fill == 0
        if self._inherit and (padded_alike or self.policy.caches == "stack"):
            self.ledger.move(layout, moved, changed)
            if self.memory is not None:
                self.memory.move(layout, moved)
            if self.layers is not None:
                self.layers.move(layout, moved)
            self.layout = layout
            for node in self.ledger.nodes(RESIDUAL, layout):
                _ = node.counts  # what waits for the device does so here, not in the steps to come
        else:
            trend = trend_of(self.ledger, self.layout) if self.policy.transition == "trend" else None
            self.ledger.clear()
            if trend is not None:
                self.ledger.store(TREND, trend.move(layout, moved, changed))
            self._previous = None
            self.layout = layout
            self._forget()
        self._view = None
        self.costs.clear()

    def report(self, flops: float = 0.0, saved_flops: float = 0.0) -> Callable[[], BranchRecord]:
        """What was decided in the latest call, what it cost, and how far what is cached now holds; made when read."""
        assert self._verdict is not None
        nodes = self.ledger.nodes(RESIDUAL, self.layout)
        left = nodes[0].counts if nodes else self._found
        if self._counts is None or left is not self._found or not self._held:
            self._held = sum(part.nbytes for part in (self.ledger, self.memory, self.layers) if part is not None)
        return partial(branch_record, self._verdict, self._found, left, self._held, flops, saved_flops)

    # ---- inner workings

    def _count(
        self, policy: Counting, situation: Situation, newest: Feature | None, compute: bool
    ) -> tuple[bool, ...]:
        """Which samples reuse, by a policy that counts."""
        if newest is None or compute:
            return (False,) * self.layout.batch
        before = situation.step - 1
        pairs = zip(self._found, newest.passes, strict=True)
        return tuple([self._usable(count) and policy.allows(situation, before - taken[0]) for count, taken in pairs])

    def _usable(self, marks: tuple[int, int, int]) -> bool:
        """True if a sample's residual may be used, by its marks counted."""
        return not marks[Mark.EMPTY] and (self._inherit or not marks[Mark.INHERITED])

    def _readable(self, newest: Feature | None, compute: bool) -> Tensor:
        """(B,) bool: the samples whose residual may be used; on the host for policies that look at no signal."""
        if self.policy.signal is None:
            return torch.tensor([newest is not None and not compute and self._usable(count) for count in self._found])
        if newest is None or compute:
            return torch.zeros(self.layout.batch, dtype=torch.bool, device=self.layout.refined.device)
        return newest.readable(inherited=self._inherit)

    def _select(
        self, situation: Situation, newest: Feature | None, reuse: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, n) bool twice: the tokens to compute in samples that reuse, and those whose feature is VALID."""
        if self.policy.caches == "stack" or newest is None:
            return None, None
        measure = partial(measured, self.ledger, self.layout, self.memory, self.layers)
        view = self._view = view_of(situation, newest, self._kept, measure)
        chosen = self.state.select(situation, view)
        if chosen is None or reuse.device == chosen.device:
            return None if chosen is None else chosen & reuse[:, None], view.valid
        rows = zip(chosen, reuse.tolist(), strict=True)  # decided on the host: a copy to the device would wait
        return torch.stack([row & reuses for row, reuses in rows]), view.valid

    def _forget(self) -> None:
        """Begin what is kept beside the ledger anew."""
        if self.policy.caches == "rows":
            self.memory = KeyValueMemory(self.layout, self.policy.order > 0)
        elif self.policy.caches != "stack":
            self.layers = LayerCache(self.layout)

    def _forecast(self, sigma: float, samples: Samples | None) -> Tensor:
        """The residual at a level, of some samples or all."""
        rows, order = None if samples is None else samples.rows, self.policy.order
        if self._polynomial and TREND not in self.ledger:
            nodes = self.ledger.uniform_history(RESIDUAL, self.layout, order + 1)
            if nodes is not None:
                residual = extrapolate_uniform(nodes, sigma)
                return residual if rows is None else residual[rows]
        inherited, by_token = self.policy.transition == "inherit", self.memory is not None
        return self.state.forecast(residual_history(self.ledger, self.layout, inherited, by_token), sigma, rows)

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

    def _mended(self, samples: Samples) -> Counts:
        """The marks of all samples counted, once those of `samples` whose tokens are being computed are VALID."""
        newest, verdict = self.ledger.get(RESIDUAL, self.layout), self._verdict
        assert newest is not None and verdict is not None
        counts = [*newest.counts]
        for sample in samples.numbers:
            (empty, inherited, valid), mended = counts[sample], verdict.mended[sample]
            counts[sample] = empty, inherited - mended, valid + mended
        return tuple(counts)

    def _last_signal(self) -> Tensor | None:
        if self.policy.signal != "modulated":
            return self._previous
        reading = self.ledger.read(SIGNAL, self.layout, inherited=self._inherit)
        return None if reading is None else reading.values

    def _keep_signal(self, signal: Tensor | None, situation: Situation) -> None:
        """Token signals move with the layout, so the ledger keeps them; images stay as they are."""
        if signal is None or self.policy.signal != "modulated":
            self._previous = signal
        else:
            self.ledger.record(SIGNAL, signal, self.layout, situation.step, situation.sigma)


def _ages(situation: Situation, newest: Feature | None) -> tuple[int, ...]:
    """See `Situation.ages`."""
    return () if newest is None else tuple(situation.step - 1 - taken.step for taken in newest.passes)
