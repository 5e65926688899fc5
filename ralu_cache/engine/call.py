"""A call of an accelerated pipeline: all that it changes hangs on it, and nothing outlives it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from ralu_cache.engine.levels import StockSchedule
from ralu_cache.engine.run import Run
from ralu_cache.engine.scheduler import check_scheduler, release, staged


class Owner(Protocol):
    """Whose calls they are: the handle of an accelerated pipeline."""

    def new_run(self, call: Call, model_shift: float, sigmas: list[float], custom: bool) -> Run | None:
        """The run of a call whose stock levels are `sigmas` (`custom`: the caller's own); None if all is stock."""

    def finish(self, run: Run) -> None:
        """A run is over, at its end or before."""


class Call:
    """One call of one pipeline, kept alive by that call's frame alone.

    handle: whose call it is. pipe: the pipeline. scheduler: the call's own copy. own: the private attributes that the
    pipeline's `__call__` stores, as this call has them. working: the state of the denoiser (or ControlNet) that is
    running now; `states` holds that of each. given: the arguments of the pipeline's call by name.
    """

    def __init__(self, handle: Owner, pipe: Any, given: Mapping[str, Any]) -> None:
        self.over = False
        self.handle, self.pipe, self.given = handle, pipe, given
        self.own: dict[str, Any] = {}
        self.run: Run | None = None
        self.stock: StockSchedule | None = None  # of the latest run; it outlives the run's last step
        self.stock_timesteps: Any = None  # as the stock scheduler lays them out
        self.passed = self.told = 0  # steps of it that are done, and that the caller's callback, if any, was told of
        self.states: dict[Any, Any] = {}
        self.working: Any = None
        check_scheduler(vars(pipe)["scheduler"])  # it may have been replaced
        self.scheduler = staged(vars(pipe)["scheduler"], self)

    @property
    def watched(self) -> bool:
        """True if a callback of the caller's gets to see tensors."""
        return any(self.given.get(name) is not None for name in ("callback_on_step_end", "callback"))

    def begin(self, shift: float, sigmas: list[float], custom: bool) -> Run | None:
        """A run begins, as the pipeline sets its time steps: see `Owner.new_run`."""
        self._end_run()
        self.run = self.handle.new_run(self, shift, sigmas, custom)
        self.stock = None if self.run is None else self.run.stock
        self.passed = self.told = 0
        return self.run

    def stepped(self, run: Run) -> None:
        """The scheduler made a step; after the last one nothing of the run is needed."""
        self.stock = run.stock
        if run.watched:
            self.passed = run.passed
        if run.finished:
            self._end_run()

    def close(self) -> None:
        """End it: whoever still holds the call (a traceback, say) holds nothing of it."""
        self._end_run()
        release(self.scheduler)
        self.over = True
        for name in ("own", "states"):
            getattr(self, name).clear()
        self.working = self.stock_timesteps = None
        self.given = {}

    def _end_run(self) -> None:
        if self.run is not None:
            self.handle.finish(self.run)
            self.run.close()
        self.run = None


def clear_frames(traceback: TracebackType | None) -> None:
    """Drop the locals of our own frames in a traceback, which would keep what a run held; others' stay."""
    while traceback is not None:
        frame = traceback.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith("ralu_cache."):
            with suppress(RuntimeError):  # still running
                frame.clear()
        traceback = traceback.tb_next
