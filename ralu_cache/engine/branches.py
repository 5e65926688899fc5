"""Branches: the temporal state of the denoiser calls that compute the same samples, step after step.

With true classifier-free guidance a step computes every picture twice, so a run has two branches, or one of both; what
one has cached is never seen by another. A branch joins a policy, which decides, and a ledger, which knows what may
still be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ralu_cache.engine.deciding import signal_of
from ralu_cache.engine.identity import Identity
from ralu_cache.engine.verdict import Group, Verdict, indices_of
from ralu_cache.history.attention import KeyValueMemory, Rows
from ralu_cache.history.feature import Feature, Mark
from ralu_cache.history.layer_cache import Fresh, LayerCache
from ralu_cache.history.ledger import Ledger
from ralu_cache.history.residuals import History, along_trend, slope
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, map_tokens, take
from ralu_cache.report.record import BranchRecord
from ralu_cache.temporal.base import CountState, Policy, RuleState, Situation, TokenView


class Branch:
    """One branch of one run: plans each call, keeps what was computed, moves it over transitions."""

    def __init__(
        self, policy: Policy, layout: TokenLayout, identity: Identity | None = None, denoiser: object = None
    ) -> None:
        """identity: whom it computes; denoiser: by which model."""
        self.policy = policy
        self.layout = layout
        self.identity = identity or Identity(tuple(range(layout.batch)), {})
        self.denoiser = denoiser
        self.ledger = Ledger()
        self.state = policy.start(layout.batch, layout.refined.device)
        self.memory: KeyValueMemory | None = None
        self.layers: LayerCache | None = None
        self._forget()
        self._inherit = policy.transition in ("inherit", "kept")
        self._computed = [0] * layout.batch  # times in this stage, of each sample
        self._kept: Tensor | None = None
        self._ahead: Tensor
        self._situation: Situation
        self._view: TokenView | None = None
        self._previous: Tensor | None = None
        self._verdict: Verdict | None = None
        self._marks = self._count()
        self._found = self._marks

    def followed(self, identity: Identity, layout: TokenLayout) -> Branch | None:
        """This branch, or some of its samples as a branch of their own, if they are those of `identity`, on `layout`.

        None if they aren't, or if the policy keeps something that can't be divided.
        """
        rows = identity.rows_in(self.identity)
        if rows is None:
            return None
        if layout is self.layout and rows == [*range(layout.batch)]:
            self.identity = identity
            return self
        pick = getattr(self.state, "pick", None)
        if pick is None:
            return None
        index = torch.tensor(rows, device=layout.refined.device)
        part = Branch(self.policy, layout, identity, self.denoiser)
        part.state = pick(rows)
        part.ledger = self.ledger.pick(index, layout)
        part.memory = None if self.memory is None else self.memory.pick(index, layout)
        part.layers = None if self.layers is None else self.layers.pick(index, layout)
        part._previous = None if self._previous is None else self._previous[index]
        part._kept = None if self._kept is None else self._kept[index]
        part._computed = [self._computed[row] for row in rows]
        part._marks = [self._marks[row] for row in rows]
        return part

    def plan(
        self,
        situation: Situation,
        modulated: Callable[[], Tensor],
        canvas: Callable[[], Tensor],
        compute: bool = False,
    ) -> list[Group]:
        """Who is computed and who reuses in this call; the computed first. Each sample decides for itself.

        modulated: gives the first block's modulated input (B, n + extra, d); canvas: gives the image (B, C, H, W);
        compute: nothing may be reused in this call, whatever the policy.
        """
        fresh = None
        if isinstance(self.state, CountState) and self.policy.caches == "stack":
            verdict = self._verdict = Verdict.counted(self.state.count(situation, self._known(compute)))
        else:
            signal = signal_of(self.policy, self.layout, modulated, canvas)
            decision = self.state.decide(situation, signal, self._last_signal(), self._readable(compute))
            self._keep_signal(decision.signal, situation)
            fresh, valid = self._select(situation, decision.reuse)
            verdict = self._verdict = Verdict.read(decision, fresh, valid)
        self._found = self._marks
        # what is computed is VALID; to count the ledger's marks anew would be one more host read a call
        self._marks = [self._marks_after(row) for row in range(self.layout.batch)]
        self._computed = [n + (kind == "computed") for n, kind in zip(self._computed, verdict.kinds, strict=True)]
        return self._groups(verdict, situation, fresh)

    def record(self, group: Group, residual: Tensor, situation: Situation) -> None:
        """Keep the residual that a group just computed, (k, n + extra, d), or (k, m, d) of its tokens alone.

        Where layers are cached it is of all tokens in any case, and those of the group are kept.
        """
        keep, step, sigma = self.policy.order + 1, situation.step, situation.sigma
        if min(self._computed) > 1:  # every sample has a trend of its own
            self.ledger.drop("trend")
        if group.tokens is None:
            self.ledger.record("residual", residual, self.layout, step, sigma, group.rows, keep)
        else:
            if self.layers is not None:
                residual = take(residual, group.tokens)
            rows = torch.arange(self.layout.batch, device=residual.device) if group.rows is None else group.rows
            self.ledger.record_tokens("residual", residual, self.layout, step, sigma, rows, group.tokens, keep)

    def rows(self, group: Group, layout: TokenLayout, text: int) -> Rows | None:
        """What the blocks need to know to remember keys and values, and to run some tokens alone, once they run for it.

        None where they do not run, or nothing is remembered. layout: of the call; text: its text tokens. Raises
        StaleFeature if the memory has another layout.
        """
        if self.memory is None or not group.computes:
            return None
        self.memory.check(layout)
        ahead = self._ahead if group.rows is None else self._ahead[group.rows]
        return self.memory.begin(text, ahead, group.rows, group.tokens, group.counts)

    def refresh(self, group: Group, text: int, singles: Sequence[bool]) -> tuple[Fresh, Fresh | None]:
        """The image and text tokens of a group for which the MLPs run; see `PolicyState.refresh`."""
        assert self._view is not None
        image, words = self.state.refresh(self._situation, self._view, text, singles)

        def fresh(order: Tensor, counts: tuple[int, ...]) -> Fresh:
            return Fresh(order if group.rows is None else order[group.rows], counts)

        return fresh(*image), None if words is None else fresh(*words)

    def forecast_layer(self, history: History) -> Tensor:
        """What one layer's part would give now."""
        return self.state.forecast(history, self._situation.sigma)

    def transfer(self, layout: TokenLayout, changed: Tensor | None) -> None:
        """A transition to `layout`: "inherit" carries everything over, "reset" forgets it, "trend" all but one thing.

        changed: (B, n) bool, the tokens of `layout` into which fresh noise was mixed.
        """
        moved = map_tokens(self.layout, layout)
        self._kept = moved.kind == Kind.KEPT
        if self._inherit:
            self.ledger.transfer(layout, changed)
            if self.memory is not None:
                self.memory.transfer(layout, moved)
            if self.layers is not None:
                self.layers.move(layout, moved)
            self.layout = layout
        else:
            trend = self._trend()
            self.ledger.clear()
            if trend is not None:
                self.ledger.store("trend", trend.move(layout, moved, changed))
            self._previous = None
            self.layout = layout
            self._forget()
        self._computed = [0] * layout.batch
        self._marks = self._count()

    def report(self, flops: float = 0.0, saved_flops: float = 0.0) -> BranchRecord:
        """What was decided in the latest call, what it cost, and how far what is cached now holds."""
        verdict = self._verdict
        assert verdict is not None
        empty, inherited, valid = (sum(column) for column in zip(*self._marks, strict=True))
        found = tuple(sum(column) for column in zip(*self._found, strict=True))
        return BranchRecord(
            reused=tuple(kind == "reused" for kind in verdict.kinds),
            fresh=verdict.fresh,
            distance=verdict.distance,
            threshold=verdict.threshold,
            empty=empty,
            inherited=inherited,
            valid=valid,
            cached_bytes=sum(part.nbytes for part in (self.ledger, self.memory, self.layers) if part is not None),
            found=(found[Mark.EMPTY], found[Mark.INHERITED], found[Mark.VALID]),
            total=verdict.total,
            flops=flops,
            saved_flops=saved_flops,
        )

    def _readable(self, compute: bool) -> Tensor:
        """(B,) bool: the samples whose residual may be used; on the host for policies that look at no signal."""
        if self.policy.signal is None:
            return torch.tensor(self._known(compute))
        reading = self.ledger.read("residual", self.layout, inherited=self._inherit)
        if reading is None or compute:
            return torch.zeros(self.layout.batch, dtype=torch.bool, device=self.layout.refined.device)
        return reading.readable

    def _known(self, compute: bool) -> list[bool]:
        """The samples whose residual may be used, as the host knows it."""
        return [not compute and not empty and (self._inherit or not old) for empty, old, _ in self._marks]

    def _select(self, situation: Situation, reuse: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(B, n) bool twice: the tokens to compute in samples that reuse, and those whose feature is VALID."""
        self._situation = situation
        if self.policy.caches == "stack":
            return None, None
        feature = self.ledger.get("residual", self.layout)
        if feature is None:
            self._ahead = torch.zeros(self.layout.batch, self.layout.tokens, device=self.layout.refined.device)
            return None, None
        valid = feature.mark == Mark.VALID
        self._ahead = torch.where(valid, situation.sigma - feature.sigma, 0.0)
        kept = torch.ones_like(valid) if self._kept is None else self._kept
        measure = partial(_measure, self.ledger, self.layout, self.memory, self.layers)
        self._view = TokenView(situation.step - feature.step, valid, kept, self._ahead, measure)
        chosen = self.state.select(situation, self._view)
        if chosen is None or reuse.device == chosen.device:
            return None if chosen is None else chosen & reuse[:, None], valid
        rows = zip(chosen, reuse.tolist(), strict=True)  # decided on the host: a copy to the device would wait
        return torch.stack([row & reuses for row, reuses in rows]), valid

    def _forget(self) -> None:
        """Begin what is kept beside the ledger anew."""
        if self.policy.caches == "rows":
            self.memory = KeyValueMemory(self.layout, self.policy.order > 0)
        elif self.policy.caches != "stack":
            self.layers = LayerCache(self.layout)

    def _trend(self) -> Feature | None:
        """How the residual of every token was changing with sigma, where the policy wants that to go on.

        On the line through its last two values, or what an earlier stage left; EMPTY where it was never computed twice.
        """
        newest, older, before = (self.ledger.get(name, self.layout) for name in ("residual", "residual/1", "trend"))
        if self.policy.transition != "trend" or newest is None or older is None:
            return before
        tokens = self.layout.tokens
        change, known = slope(*((node.sigma, node.values[:, :tokens]) for node in (newest, older)))
        mark = newest.mark.masked_fill(~known, Mark.EMPTY)
        whole = torch.cat([change, torch.zeros_like(newest.values[:, tokens:])], 1)
        if before is not None:
            whole[:, :tokens] = torch.where(known[..., None], change, before.values[:, :tokens])
            mark = torch.where(known, mark, before.mark)
        return replace(newest, values=whole, mark=mark)

    def _history(self) -> History:
        """The residuals of the computed steps, as they may be used now."""
        by_token, inherited = self.memory is not None, self.policy.transition == "inherit"
        history = self.ledger.history("residual", self.layout, inherited=inherited, by_token=by_token)
        trend = self.ledger.get("trend", self.layout)
        if trend is None or not history:
            return history
        known = trend.token_levels(inherited=True).isfinite() if by_token else trend.readable(inherited=True)
        return along_trend(history, trend.values, known)

    def _forecast(self, sigma: float) -> Callable[[Tensor | None], Tensor]:
        """The residual at a level, of some samples or all."""
        state = self.state
        if isinstance(state, RuleState) and type(state).forecast is RuleState.forecast and "trend" not in self.ledger:
            nodes = self.ledger.uniform_history("residual", self.layout, self.policy.order + 1)
            if nodes is not None:
                return partial(state.forecast_uniform, nodes, sigma)
        return partial(state.forecast, self._history(), sigma)

    def _groups(self, verdict: Verdict, situation: Situation, fresh: Tensor | None) -> list[Group]:
        """The samples by kind, the computed first: the call itself is made for the first group."""
        kinds = [kind for kind in ("computed", "partial", "reused") if kind in verdict.kinds]
        if kinds == ["computed"]:
            return [Group()]
        forecast = self._forecast(situation.sigma)
        groups = []
        for kind in kinds:
            rows = None if len(kinds) == 1 else verdict.rows(kind, self.layout.refined.device)
            if kind == "computed":
                groups.append(Group(rows))
                continue
            residual = forecast(rows)
            if kind == "reused":
                groups.append(Group(rows, residual))
                continue
            assert fresh is not None
            counts = tuple(count for count in verdict.fresh if count)
            groups.append(Group(rows, residual, indices_of(fresh if rows is None else fresh[rows], counts), counts))
        return groups

    def _marks_after(self, row: int) -> list[int]:
        """How many tokens of a sample are EMPTY, INHERITED and VALID once the verdict was carried out."""
        verdict = self._verdict
        assert verdict is not None
        if verdict.kinds[row] == "computed":
            return [0, 0, self.layout.tokens]
        empty, inherited, valid = self._marks[row]
        mended = verdict.mended[row]
        return [empty, inherited - mended, valid + mended]

    def _count(self) -> list[list[int]]:
        """Per sample, how many tokens are EMPTY, INHERITED and VALID; asks the ledger."""
        if "residual" in self.ledger:
            return self.ledger.counts("residual").tolist()
        return [[self.layout.tokens, 0, 0]] * self.layout.batch

    def _last_signal(self) -> Tensor | None:
        if self.policy.signal != "modulated":
            return self._previous
        reading = self.ledger.read("signal", self.layout, inherited=self._inherit)
        return None if reading is None else reading.values

    def _keep_signal(self, signal: Tensor | None, situation: Situation) -> None:
        """Token signals move with the layout, so the ledger keeps them; images stay as they are."""
        if signal is None or self.policy.signal != "modulated":
            self._previous = signal
        else:
            self.ledger.record("signal", signal, self.layout, situation.step, situation.sigma)


def _measure(
    ledger: Ledger, layout: TokenLayout, memory: KeyValueMemory | None, layers: LayerCache | None, name: str
) -> Tensor:
    """See `TokenView.measure`. Raises ValueError for what a policy of this kind cannot ask for.

    No method: a view that held its branch would keep it alive until the garbage collector comes.
    """
    if name != "change" and layers is not None:
        return layers.measure(name)
    if name in ("key", "value") and memory is not None:
        return memory.norms(name)
    if name != "change":
        raise ValueError(f"token measure {name!r} is not kept; known here: key, value, change")
    newest, *older = (ledger.get(key, layout) for key in ("residual", "residual/1"))
    assert newest is not None
    tokens = layout.tokens
    if older[0] is None:
        return newest.values.new_zeros(newest.mark.shape, dtype=torch.float32)
    now, before = newest.values[:, :tokens].float(), older[0].values[:, :tokens].float()
    return ((now - before).norm(dim=-1) / before.norm(dim=-1)).nan_to_num()
