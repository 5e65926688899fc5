"""A denoiser called by hand, outside of a pipeline: what is decided in a pipeline's call, the caller decides here."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.engine.blocks import StackState
from ralu_cache.engine.context import current, entered
from ralu_cache.engine.root import RootState


class BareCall:
    """Stands in for a pipeline's call while one denoiser runs; nobody but its owner keeps it alive.

    What is installed in the denoiser is to be given `state` and `active`, which answer within this call alone.
    """

    over = False
    pipe = handle = run = None

    def __init__(self) -> None:
        self.working = RootState(cast(Any, None), StackState(), depth=1)

    @property
    def stack(self) -> StackState:
        """What the blocks are to do in the next call, and what was seen of the latest."""
        return self.working.stack

    def state(self) -> RootState | None:
        return self.working if current() is self else None

    def active(self) -> LayoutCall | None:
        return None if self.state() is None else self.working.active

    def predict(self, denoiser: Any, call: dict[str, Any]) -> Tensor:
        """The denoiser's prediction, in this call."""
        with entered(self):
            return denoiser(**call)[0]
