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
from ralu_cache.ledger import Ledger, Mark, plane
from ralu_cache.report import BranchRecord
from ralu_cache.temporal.base import Decision, Policy, Situation


@dataclass(frozen=True, eq=False)
class Group:
    """Samples of one call that share a decision.

    rows: (k,) int64 indices into the batch, None for all. residual: (k, n, d) to be added in place of running the
    blocks, None if the blocks run.
    """

    rows: Tensor | None = None
    residual: Tensor | None = None


class Branch:
    """One branch of one run: plans each call, keeps what was computed, moves it over transitions."""

    def __init__(self, policy: Policy, layout: TokenLayout) -> None:
        self.policy = policy
        self.layout = layout
        self.ledger = Ledger()
        self.state = policy.start(layout.batch, layout.refined.device)
        self._inherit = policy.transition == "inherit"
        self._previous: Tensor | None = None
        self._decision: Decision | None = None
        self._found: Tensor | None = None

    def plan(
        self, situation: Situation, modulated: Callable[[], Tensor], canvas: Tensor, compute: bool = False
    ) -> list[Group]:
        """Who is computed and who reuses in this call; the computed first. Each sample decides for itself.

        modulated: gives the first block's modulated input (B, n + extra, d); canvas: the latent image (B, C, H, W);
        compute: nothing may be reused in this call, whatever the policy.
        """
        self._found = self._marks()
        signal = self._signal(modulated, canvas)
        reading = self.ledger.read("residual", self.layout, inherited=self._inherit)
        readable = torch.zeros(self.layout.batch, dtype=torch.bool, device=self.layout.refined.device)
        if reading is not None and not compute:
            readable = reading.readable
        decision = self.state.decide(situation, signal, self._last_signal(), readable)
        self._keep_signal(decision.signal, situation)
        self._decision = decision
        reuse = decision.reuse.tolist()
        if not any(reuse):
            return [Group()]
        history = self.ledger.history("residual", self.layout, inherited=self._inherit)
        if all(reuse):
            return [Group(None, self.state.forecast(history, situation.sigma))]
        reused = decision.reuse.nonzero()[:, 0]
        return [
            Group((~decision.reuse).nonzero()[:, 0]),
            Group(reused, self.state.forecast(history, situation.sigma, reused)),
        ]

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

    def report(self) -> BranchRecord:
        """What was decided in the latest call, and how far what is cached now holds."""
        decision, found = self._decision, self._found
        assert decision is not None and found is not None
        counts = self._marks().tolist()
        empty, inherited, valid = found.tolist()
        return BranchRecord(
            reused=tuple(decision.reuse.tolist()),
            distance=tuple(decision.distance.tolist()),
            threshold=decision.threshold,
            empty=counts[Mark.EMPTY],
            inherited=counts[Mark.INHERITED],
            valid=counts[Mark.VALID],
            cached_bytes=self.ledger.nbytes,
            found=(empty, inherited, valid),
            total=() if decision.total is None else tuple(decision.total.tolist()),
        )

    def _marks(self) -> Tensor:
        """(3,) int64: how many tokens of all samples are EMPTY, INHERITED and VALID now."""
        if "residual" in self.ledger:
            return self.ledger.counts("residual").sum(0)
        return torch.tensor([self.layout.batch * self.layout.tokens, 0, 0])

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
