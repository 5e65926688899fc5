"""The handle of an accelerated pipeline: what its calls' runs are made of, and the way back to the stock pipeline."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from ralu_cache.adapters.finding import Finding
from ralu_cache.engine.call import Call, clear_frames
from ralu_cache.engine.context import entered
from ralu_cache.engine.counted import check_counted
from ralu_cache.engine.experts import boundary_of
from ralu_cache.engine.pipeline import undress
from ralu_cache.engine.run import Run
from ralu_cache.engine.scheduler_run import SchedulerRun, Setting
from ralu_cache.engine.steppers import notice_of
from ralu_cache.report.glance import Glance
from ralu_cache.report.report import Report
from ralu_cache.temporal.prediction import FEW

logger = logging.getLogger("ralu_cache")


class Acceleration:
    """The handle of an accelerated pipeline: its report, and the way back to the stock pipeline.

    What its calls' runs are, its kinds say: `FamilyAcceleration`
    (`ralu_cache.engine.family`) for pipelines of a known family, `AnyAcceleration`
    (`ralu_cache.engine.anywhere`) for any other.
    """

    def __init__(self, pipe: Any, again: Callable[[Any], Any]) -> None:
        """again: accelerates a copy of the pipeline alike."""
        self.again = again
        self.enabled = True
        self._pipe = weakref.ref(pipe)
        self._report: Report | None = None
        self._told: set[str] = set()
        self._lock = threading.RLock()
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._refresh(pipe)
        self._end = weakref.finalize(pipe, self.disable)
        self._end.atexit = False

    @property
    def report(self) -> Report | None:
        """What the latest pipeline call did (`completed` is False if it was cut short); None before the first."""
        return self._report

    @property
    def findings(self) -> list[Finding]:
        """Where the blocks are of denoisers that no adapter knows, once their first call has been probed."""
        return []

    def _glance(self) -> Glance:
        pipe, settings = self._pipe(), getattr(self.again, "keywords", {})  # of a partial `accelerate`
        return Glance(None if pipe is None else type(pipe).__name__, self.enabled, settings, self._report)

    def __repr__(self) -> str:
        return self._glance().text()

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return self._glance().html()

    def disable(self) -> None:
        """Give back the stock pipeline, bit for bit. Calling it again does nothing.

        Within a call (a callback's, or another thread's) it waits for the end of the calls that are under way.
        """
        with self._lock:
            self.enabled = False
            if len(self._calls):
                return
            self._unhook()
        self._end.detach()
        if (pipe := self._pipe()) is not None:
            undress(pipe, self)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()

    @contextmanager
    def call(self, pipe: Any = None, /, **given: Any) -> Iterator[None]:
        """What runs within it, in this context, is one accelerated call of the pipeline: for loops of one's own.

        The pipeline's own `__call__` does this by itself; `FluxPipeline.__call__(pipe, ...)`, a bound method that was
        taken before `accelerate()`, or a loop that goes through `pipe.scheduler` and `pipe.transformer` needs it. Other
        threads do not belong to it, unless they run in a copy of the context. given: the arguments of the pipeline's
        call, where there is one. Raises RuntimeError once disabled, and what the call itself would be refused with.
        """
        pipe = self._pipe() if pipe is None else pipe
        if pipe is None or not self.enabled:
            raise RuntimeError("this handle is disabled, or its pipeline is gone; call accelerate(pipe, ...) again")
        self._refresh(pipe)
        call = Call(self, pipe, given)
        self._calls.add(call)
        try:
            with entered(call):
                yield
        except BaseException as error:
            clear_frames(error.__traceback__)
            raise
        finally:
            call.close()
            self._calls.discard(call)
            del call
            self._retire()

    def _retire(self) -> None:
        """Carry out what `disable` left to the end of the last call."""
        if not self.enabled:
            self.disable()

    def check(self, scheduler: Any) -> None:
        """Raise TypeError or ValueError for a scheduler that the calls cannot be served with."""
        raise NotImplementedError

    def new_run(self, call: Call, scheduler: Any, given: Mapping[str, Any]) -> Run | SchedulerRun | None:
        """See `ralu_cache.engine.call.Owner`. What is refused is refused before there is a report of it."""
        raise NotImplementedError

    def finish(self, run: Run | SchedulerRun) -> None:
        """A run is over, at its end or before."""
        report = run.report
        if report is not None and report.completed and run.steps <= FEW and not self._changes(report):
            self._tell(
                report,
                f"temporal={report.temporal!r} changed nothing in this call: it has {run.steps} steps, and all "
                f"of them are computed; reuse in time is for models that make more than {FEW}",
            )

    def _changes(self, report: Report) -> bool:
        """True if a run was not the stock one, or was not asked to be another."""
        return report.temporal == "none" or report.caches or report.solver != "euler"

    def _refresh(self, pipe: Any) -> None:
        """Hook what the pipeline is made of now. Raises, before anything is changed, for what can't be served."""
        self.check(vars(pipe)["scheduler"])  # it may have been replaced

    def _unhook(self) -> None:
        """Undo that."""

    def _run_outside(
        self, call: Call, scheduler: Any, setting: Setting, temporal: str, solver: str = "euler"
    ) -> SchedulerRun:
        """A run that the scheduler alone knows of. Only the call's own scheduler's is reported."""
        setting = replace(setting, boundary=boundary_of(call.pipe))
        if scheduler is not call.scheduler:
            return SchedulerRun(scheduler, setting, None)
        report = Report(
            pipeline=type(call.pipe).__name__, spatial="none", temporal=temporal, solver=solver,
            scheduler=type(scheduler).__name__,
        )  # fmt: skip
        run = SchedulerRun(scheduler, setting, report, call.watched)
        if run.leaves_out:
            check_counted(call.pipe, call.given, run.count)
            self._tell(report, notice_of(scheduler))
        self._report = report
        return run

    def _tell(self, report: Report | None, notice: str | None) -> None:
        """Log a notice the first time, and note it in every report that it concerns."""
        if notice is None:
            return
        if report is not None:
            report.notices.append(notice)
        if notice not in self._told:
            logger.warning(notice)
            self._told.add(notice)
