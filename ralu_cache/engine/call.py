"""A call of an accelerated pipeline: all that it changes hangs on it, and nothing outlives it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

import torch

from ralu_cache.adapters.ranks import ranks_of
from ralu_cache.engine.attributes import stored
from ralu_cache.engine.disguise import stock_of
from ralu_cache.engine.guider import counting
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
    (or ControlNet) that is running now; `states` holds that of each. guiders: copies of the pipeline's, once they
    were asked for. given: the arguments of the pipeline's call.
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
        self.stock_sigmas: Any = None  # likewise
        self.passed = self.told = 0  # steps of it that are done, and that the caller's callback, if any, was told of
        self.states: dict[Any, Any] = {}
        self.working: Any = None
        self.guiders: dict[str, Any] = {}
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
            if self.outside is not None and self.outside.index is not None:  # else the schedule is set again, unused
                self.check_end()
            self._end_run()
            self.stock_timesteps, self.stock_sigmas = scheduler.timesteps, getattr(scheduler, "sigmas", None)
        run = self.handle.new_run(self, scheduler, given)
        if isinstance(run, Run):
            self.run = run
        elif own or self.outside is None:
            self.outside = run
        if own:
            self.stock = None if run is None else run.stock
            self.passed = self.told = 0
        return run

    def levels_like(self, told: Any) -> Any:
        """The stock schedule in the form in which the pipeline tells callbacks of it: time steps, or (CogView4) sigmas.

        told: what the pipeline tells, of the levels that it is shown.
        """
        shown = getattr(self.scheduler, "sigmas", None)
        if not (torch.is_tensor(told) and torch.is_tensor(shown) and torch.is_tensor(self.stock_sigmas)):
            return self.stock_timesteps
        in_sigmas = told.untyped_storage().data_ptr() == shown.untyped_storage().data_ptr()
        return self.stock_sigmas if in_sigmas else self.stock_timesteps

    def guider_of(self, name: str, held: Any) -> Any:
        """The call's own copy of the pipeline's guider of that name, `held` when it was first asked for."""
        if name not in self.guiders:
            self.guiders[name] = counting(held, self)
        return self.guiders[name]

    def forget(self, residuals: bool = False) -> None:
        """A callback changed what the model is conditioned on: what it said before is on no line with what it will.

        residuals: nor is what its blocks gave, though its calls are of the same tensors.
        """
        runs = [scheduler.run for scheduler in (self.scheduler, *self.copies)]
        for run in {id(run): run for run in runs if run is not None}.values():
            run.forget()
        if residuals and self.run is not None:
            self.run.branches.clear()

    def follow(self, run: SchedulerRun) -> None:
        """A step of a run is made: where the call's own scheduler makes none, a copy's is told of (SkyReels)."""
        if self.outside is not None and run is not self.outside and self.outside.index is None:
            run.report, self.outside.report = self.outside.report, None
            self.outside = run

    def stepped(self, run: Run | SchedulerRun) -> None:
        """The scheduler made a step; after the last one nothing of the run is needed."""
        if run is not self.run and run is not self.outside:
            return
        self.stock = run.stock
        if run.watched:
            self.passed = run.passed
        if run.finished:
            self._end_run()

    def check_end(self) -> None:
        """Raise RuntimeError where the pipeline leaves a run before its last step, though nobody interrupted it: in a
        loop of fewer steps the one that it always leaves out is another, and steps of its own go over fewer levels."""
        run = self.outside
        if run is None or run.finished or not run.leaves_out:
            return
        interrupts = "_interrupt" in stored(stock_of(type(self.pipe)))  # else a flag is of an earlier call, or no one's
        if not (interrupts and getattr(self.pipe, "_interrupt", False)):
            raise RuntimeError(
                f"{type(self.pipe).__name__} ended after {run.done} of {run.steps} steps: it leaves out steps of its "
                f"schedule, so {run.setting.forecast} cannot serve it; disable it"
            )

    def close(self) -> None:
        """End it: whoever still holds the call (a traceback, say) holds nothing of it."""
        self._end_run()
        for scheduler in (self.scheduler, *self.copies):
            release(scheduler)
        self.over = True
        for name in ("own", "states", "copies", "guiders"):
            getattr(self, name).clear()
        self.working = self.stock_timesteps = self.stock_sigmas = None
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
