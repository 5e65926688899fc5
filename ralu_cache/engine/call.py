"""A call of an accelerated pipeline: all that it changes hangs on it, and nothing outlives it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from ralu_cache.adapters.ranks import ranks_of
from ralu_cache.engine.levels import StockSchedule
from ralu_cache.engine.run import Run
from ralu_cache.engine.scheduler import release, staged
from ralu_cache.engine.scheduler_run import SchedulerRun


class Owner(Protocol):
    """Whose calls they are: the handle of an accelerated pipeline."""

    def new_run(self, call: Call, scheduler: Any, given: Mapping[str, Any]) -> Run | SchedulerRun | None:
        """The run of a call whose scheduler has just laid out its stock schedule; None if all is stock.

        given: the arguments of `set_timesteps` by name.
        """

    def finish(self, run: Run | SchedulerRun) -> None:
        """A run is over, at its end or before."""


class Call:
    """One call of one pipeline, kept alive by that call's frame alone.

    handle: whose call it is. pipe: the pipeline. scheduler: the call's own copy; copies: what the pipeline copied from
    it. own: the private attributes that the pipeline's `__call__` stores, as this call has them. run: one that the
    denoiser's hooks take part in; outside: one that the scheduler alone knows of. working: the state of the denoiser
    (or ControlNet) that is running now; `states` holds that of each. given: the arguments of the pipeline's call.
    ranks: the processes that make the same call on parts of the same tokens, if there are any.
    """

    def __init__(self, handle: Owner, pipe: Any, given: Mapping[str, Any]) -> None:
        self.over = False
        self.handle, self.pipe, self.given = handle, pipe, given
        self.own: dict[str, Any] = {}
        self.run: Run | None = None
        self.outside: SchedulerRun | None = None
        self.copies: list[Any] = []
        self.stock: StockSchedule | None = None  # of the latest run; it outlives the run's last step
        self.stock_timesteps: Any = None  # as the stock scheduler lays them out
        self.passed = self.told = 0  # steps of it that are done, and that the caller's callback, if any, was told of
        self.states: dict[Any, Any] = {}
        self.working: Any = None
        self.ranks = ranks_of(getattr(pipe, "transformer", None))
        self.scheduler = staged(vars(pipe)["scheduler"], self)

    @property
    def watched(self) -> bool:
        """True if a callback of the caller's gets to see tensors."""
        return any(self.given.get(name) is not None for name in ("callback_on_step_end", "callback"))

    @property
    def under_way(self) -> Run | SchedulerRun | None:
        """The run that steps are made of now."""
        return self.run or self.outside

    def begin(self, scheduler: Any, given: Mapping[str, Any]) -> Run | SchedulerRun | None:
        """A run begins, as the pipeline sets its time steps: see `Owner.new_run`. A copy's goes along."""
        own = scheduler is self.scheduler
        if own:
            self._end_run()
            self.stock_timesteps = scheduler.timesteps
        run = self.handle.new_run(self, scheduler, given)
        if isinstance(run, Run):
            self.run = run
        elif own or self.outside is None:
            self.outside = run
        if own:
            self.stock = None if run is None else run.stock
            self.passed = self.told = 0
        return run

    def follow(self, run: SchedulerRun) -> None:
        """A step of a run is made: where the call's own scheduler makes none, a copy's is told of (SkyReels)."""
        if self.outside is not None and run is not self.outside and self.outside.index is None:
            run.report, self.outside.report = self.outside.report, None
            self.outside = run

    def stepped(self, run: Run | SchedulerRun) -> None:
        """The scheduler made a step; after the last one nothing of the run is needed."""
        if run is not self.under_way:
            return
        self.stock = run.stock
        if run.watched:
            self.passed = run.passed
        if run.finished:
            self._end_run()

    def close(self) -> None:
        """End it: whoever still holds the call (a traceback, say) holds nothing of it."""
        self._end_run()
        for scheduler in (self.scheduler, *self.copies):
            release(scheduler)
        self.over = True
        for name in ("own", "states", "copies"):
            getattr(self, name).clear()
        self.working = self.stock_timesteps = None
        self.given = {}

    def _end_run(self) -> None:
        if self.run is not None:
            self.handle.finish(self.run)
            self.run.close()
        if self.outside is not None:
            self.handle.finish(self.outside)
            self.outside.rest()
        self.run = self.outside = None


def clear_frames(traceback: TracebackType | None) -> None:
    """Drop the locals of our own frames in a traceback, which would keep what a run held; others' stay."""
    while traceback is not None:
        frame = traceback.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith("ralu_cache."):
            with suppress(RuntimeError):  # still running
                frame.clear()
        traceback = traceback.tb_next
