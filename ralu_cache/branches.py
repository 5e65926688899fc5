"""Branches: the temporal state of the denoiser calls that stand at the same place within every step.

With true classifier-free guidance a step makes two calls, so a run has two branches; what one has cached is never
seen by the other. A branch joins a policy, which decides, and a ledger, which knows what may still be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ralu_cache.canvas import TokenLayout
from ralu_cache.feature import Mark
from ralu_cache.ledger import Ledger
from ralu_cache.report import BranchRecord
from ralu_cache.temporal.base import Decision, Policy, Situation
from ralu_cache.token_map import plane


@dataclass(frozen=True, eq=False)
class Group:
    """Samples of one call that share a decision.

    rows: (k,) int64 indices into the batch, None for all. residual: (k, n, d) to be added in place of running the
    blocks, None if the blocks run.
    """

    rows: Tensor | None = None
    residual: Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """A decision on the host; reading it is the one time per call that the device is waited for."""

    reuse: tuple[bool, ...]
    distance: tuple[float, ...]
    total: tuple[float, ...]
    threshold: float

    @classmethod
    def read(cls, decision: Decision) -> Verdict:
        columns = [decision.reuse, decision.distance, *(() if decision.total is None else (decision.total,))]
        reuse, distance, *total = torch.stack([column.to(torch.float32) for column in columns]).tolist()
        return cls(tuple(map(bool, reuse)), tuple(distance), tuple(total[0]) if total else (), decision.threshold)

    def rows(self, reuse: bool, device: torch.device) -> Tensor:
        """(k,) int64: the samples that reuse, or those that do not."""
        return torch.tensor([row for row, kind in enumerate(self.reuse) if kind is reuse], device=device)


class Branch:
    """One branch of one run: plans each call, keeps what was computed, moves it over transitions."""

    def __init__(self, policy: Policy, layout: TokenLayout) -> None:
        self.policy = policy
        self.layout = layout
        self.ledger = Ledger()
        self.state = policy.start(layout.batch, layout.refined.device)
        self._inherit = policy.transition == "inherit"
        self._previous: Tensor | None = None
        self._verdict: Verdict | None = None
        self._marks = self._count()
        self._found = self._marks

    def plan(
        self, situation: Situation, modulated: Callable[[], Tensor], canvas: Tensor, compute: bool = False
    ) -> list[Group]:
        """Who is computed and who reuses in this call; the computed first. Each sample decides for itself.

        modulated: gives the first block's modulated input (B, n + extra, d); canvas: the latent image (B, C, H, W);
        compute: nothing may be reused in this call, whatever the policy.
        """
        signal = self._signal(modulated, canvas)
        reading = self.ledger.read("residual", self.layout, inherited=self._inherit)
        readable = torch.zeros(self.layout.batch, dtype=torch.bool, device=self.layout.refined.device)
        if reading is not None and not compute:
            readable = reading.readable
        decision = self.state.decide(situation, signal, self._last_signal(), readable)
        self._keep_signal(decision.signal, situation)
        verdict = self._verdict = Verdict.read(decision)
        self._found = self._marks
        # what is computed is VALID; to count the ledger's marks anew would be one more host read a call
        whole = [0, 0, self.layout.tokens]
        self._marks = [old if r else whole for old, r in zip(self._marks, verdict.reuse, strict=True)]
        if not any(verdict.reuse):
            return [Group()]
        history = self.ledger.history("residual", self.layout, inherited=self._inherit)
        if all(verdict.reuse):
            return [Group(None, self.state.forecast(history, situation.sigma))]
        computed, reused = (verdict.rows(kind, readable.device) for kind in (False, True))
        return [Group(computed), Group(reused, self.state.forecast(history, situation.sigma, reused))]

    def record(self, rows: Tensor | None, residual: Tensor, situation: Situation) -> None:
        """Keep the residual (k, n + extra, d) that the samples `rows` just computed."""
        keep = self.policy.order + 1
        self.ledger.record("residual", residual, self.layout, situation.step, situation.sigma, rows, keep)

    def transfer(self, layout: TokenLayout, changed: Tensor | None) -> None:
        """A transition to `layout`: "inherit" carries everything over, "reset" forgets it.

        changed: (B, n) bool, the tokens of `layout` into which fresh noise was mixed.
        """
        if self._inherit:
            self.ledger.transfer(layout, changed)
        else:
            self.ledger.clear()
            self._previous = None
        self.layout = layout
        self._marks = self._count()

    def report(self) -> BranchRecord:
        """What was decided in the latest call, and how far what is cached now holds."""
        verdict = self._verdict
        assert verdict is not None
        empty, inherited, valid = (sum(column) for column in zip(*self._marks, strict=True))
        found = tuple(sum(column) for column in zip(*self._found, strict=True))
        return BranchRecord(
            reused=verdict.reuse,
            distance=verdict.distance,
            threshold=verdict.threshold,
            empty=empty,
            inherited=inherited,
            valid=valid,
            cached_bytes=self.ledger.nbytes,
            found=(found[Mark.EMPTY], found[Mark.INHERITED], found[Mark.VALID]),
            total=verdict.total,
        )

    def _count(self) -> list[list[int]]:
        """Per sample, how many tokens are EMPTY, INHERITED and VALID; asks the ledger."""
        if "residual" in self.ledger:
            return self.ledger.counts("residual").tolist()
        return [[self.layout.tokens, 0, 0]] * self.layout.batch

    def _signal(self, modulated: Callable[[], Tensor], canvas: Tensor) -> Tensor | None:
        kind = self.policy.signal
        if kind is None:
            return None
        if kind == "canvas":
            return canvas.float()
        tokens = modulated()[:, : self.layout.tokens]
        return plane(tokens, self.layout) if kind == "plane" else tokens

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
