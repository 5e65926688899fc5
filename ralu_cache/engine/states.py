"""What a denoiser is doing for one call of a pipeline; it hangs on that call, so several may run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.engine.blocks import StackState
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.forecasted import Forecasted
from ralu_cache.engine.guided import Known, Pair
from ralu_cache.engine.run import Run
from ralu_cache.engine.verdict import Group
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal.policy import Situation


@dataclass(slots=True)
class Pending:
    """One denoiser call while its groups of samples, computed or reused, run one after the other.

    situation: where the run stands, for the branch's policy. flipped: its halves stand the other way round than the
    pipeline gave them.
    """

    run: Run
    layout: TokenLayout
    positions: Tensor | None
    call: Mapping[str, Any]
    branch: Branch | None
    groups: Sequence[Group]
    pair: Pair | None = None
    forecast: Forecasted | None = None
    flipped: bool = False
    situation: Situation | None = None


@dataclass
class RootState:
    """What one denoiser is doing for one pipeline call.

    root: its hooks. depth: 1 while it runs for the pipeline; a call of it within that is either ours (`nested`) or a
    stranger's.
    """

    root: Any
    stack: StackState
    depth: int = 0
    nested: bool = False
    active: LayoutCall | None = None
    pending: Pending | None = None
    known: Known = field(default_factory=Known)

    @property
    def ours(self) -> bool:
        """True if what runs now, runs for the pipeline's call."""
        return self.depth == (2 if self.nested else 1)

    def rest(self) -> None:
        self.active = self.pending = None
        self.nested = False
        self.stack.rest()
