"""The handle of an accelerated pipeline: what its calls' runs are made of, and the way back to the stock pipeline."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

from ralu_cache.adapters.finding import Finding
from ralu_cache.adapters.protocols import Adapter, Probed
from ralu_cache.engine.arguments import check_counted, coarse_cost_of
from ralu_cache.engine.autoencoder import autoencoder_of
from ralu_cache.engine.call import Call, clear_frames
from ralu_cache.engine.context import entered
from ralu_cache.engine.denoisers import Denoisers
from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.levels import StockSchedule, redivided
from ralu_cache.engine.pipeline import undress
from ralu_cache.engine.predictions import predictions_of
from ralu_cache.engine.run import Run
from ralu_cache.engine.scheduler import model_shift
from ralu_cache.engine.scheduler_run import SchedulerRun, Setting
from ralu_cache.engine.steppers import (
    check_flow_match_euler,
    check_steps,
    check_unipc,
    evenly_spaced,
    is_staged,
    is_unipc,
    levels_of,
    notice_of,
    own_solver,
)
from ralu_cache.history.solvers import Multistep
from ralu_cache.plane.budget import Budget
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.schedule import end_before_zero
from ralu_cache.plane.spatial import SpatialMethod, Stage
from ralu_cache.report.report import Report
from ralu_cache.temporal import Forecast, Policy
from ralu_cache.temporal.coefficients import Calibrated
from ralu_cache.temporal.prediction import FEW

logger = logging.getLogger("ralu_cache")


class Acceleration:
    """The handle of an accelerated pipeline: its report, and the way back to the stock pipeline.

    What its calls' runs are, its kinds say: `FamilyAcceleration` for pipelines of a known family, `AnyAcceleration`
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
        if report is not None and report.completed and len(report.steps) <= FEW and not self._changes(report):
            self._tell(
                report,
                f"temporal={report.temporal!r} changed nothing in this call: it has {len(report.steps)} steps, and all "
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
        if scheduler is not call.scheduler:
            return SchedulerRun(scheduler, setting, None)
        report = Report(
            pipeline=type(call.pipe).__name__, spatial="none", temporal=temporal, solver=solver,
            scheduler=type(scheduler).__name__,
        )  # fmt: skip
        run = SchedulerRun(scheduler, setting, report, call.watched)
        if run.leaves_out:
            check_counted(call.given)
            self._tell(report, notice_of(scheduler))
        self._report = report
        return run

    def _tell(self, report: Report, notice: str | None) -> None:
        """Log a notice the first time, and note it in every report that it concerns."""
        if notice is None:
            return
        report.notices.append(notice)
        if notice not in self._told:
            logger.warning(notice)
            self._told.add(notice)


class FamilyAcceleration(Acceleration):
    """The handle of a pipeline of a known family."""

    def __init__(
        self,
        pipe: Any,
        family: type[Adapter],
        method: SpatialMethod | None,
        plan: str,
        temporal: Calibrated,
        again: Callable[[Any], Any],
        guidance: Guidance | None = None,
        budget: Budget | None = None,
        solver: Multistep | None = None,
    ) -> None:
        """plan: the method's name. again: accelerates a copy of the pipeline alike.
        budget: gives each call a plan of its own in place of `method`, which has the same stages.
        """
        self.guidance = guidance
        self._budget = budget
        self._method, self._plan = method, plan
        self._temporal, self._solver = temporal, solver
        self._policy = _of_the_model(temporal.policy)
        self._denoisers = Denoisers(family, self._policy, self, temporal.policy is not None)
        super().__init__(pipe, again)

    @property
    def findings(self) -> list[Finding]:
        """See `Acceleration.findings`."""
        adapters = (root.adapter for root in self._denoisers.roots)
        found = (adapter.found() for adapter in adapters if isinstance(adapter, Probed))
        return [finding for finding in found if finding is not None]

    @property
    def wants_text_attention(self) -> bool:
        """True if regions are chosen by it."""
        return self._method is not None and "text_attention" in self._method.scorer.needs

    def check(self, scheduler: Any) -> None:
        """See `Acceleration.check`: what each setting needs of it."""
        if is_staged(scheduler):
            return
        temporal = self._temporal.policy
        ours = isinstance(temporal, Forecast) and (self.guidance is not None or temporal.tolerance is not None)
        ours = ours or getattr(temporal, "reuse", None) == "prediction"
        if self._method is not None and is_unipc(scheduler):
            check_unipc(scheduler)
        elif self._method is not None or self._solver is not None or ours:
            check_flow_match_euler(scheduler)
        elif temporal is not None or self.guidance is not None:
            check_steps(scheduler)

    def new_run(self, call: Call, scheduler: Any, given: Mapping[str, Any]) -> Run | SchedulerRun | None:
        """See `Acceleration.new_run`."""
        temporal = self._temporal
        if all(part is None for part in (self._method, temporal.policy, self.guidance, self._solver)):
            return None
        if isinstance(temporal.policy, Forecast) and self._method is None and not is_staged(call.scheduler):
            return self._run_outside(call, scheduler, Setting(temporal.policy), temporal.name)
        if scheduler is not call.scheduler:
            return None
        times = given.get("timesteps"), given.get("sigmas")
        custom = times[0] is not None or (times[1] is not None and not evenly_spaced(times[1]))
        run = self._run_inside(call, levels_of(scheduler), partial(model_shift, scheduler, given.get("mu")), custom)
        if times[0] is None and times[1] is None:  # then pipelines go on with the number of steps they asked for
            run.believed_steps = given.get("num_inference_steps")
        return run

    def _run_inside(self, call: Call, sigmas: list[float], shift: Callable[[], float], custom: bool) -> Run:
        """The run of a call whose stock levels are `sigmas` (`custom`: the caller's own), with the denoiser's hooks."""
        num_inference_steps = len(sigmas) - 1
        geometry, method = _geometry(call.pipe, self._denoisers.adapter), self._method
        notice = None if method is None else method.overrides(num_inference_steps)
        if self._budget is not None:
            method = self._budget.plan(num_inference_steps, coarse_cost_of(call, geometry.pixels))
            notice = self._budget.told(num_inference_steps)
        stages: tuple[Stage, ...] = (Stage(1.0, tuple(sigmas)),)
        solver = self._solver
        if method is not None:
            stages = _staged(method, call, shift(), sigmas, custom)
            solver = solver or own_solver(call.scheduler)
        prediction = predictions_of(self._temporal.policy, solver, len(stages))
        self._report = Report(
            pipeline=type(call.pipe).__name__, spatial=self._plan, temporal=self._temporal.name,
            baseline_steps=num_inference_steps, solver="euler" if solver is None else solver.name,
            scheduler=type(call.scheduler).__name__,
        )  # fmt: skip
        self._tell(self._report, self._temporal.notice)
        self._tell(self._report, notice)
        modules = [root.module for root in self._denoisers.roots]
        _reset_stock_caches(modules)
        return Run(
            method, stages, geometry, autoencoder_of(call.pipe), self._report, self._policy,
            lambda: _reset_stock_caches(modules), StockSchedule(tuple(sigmas)), call.watched, self.guidance,
            prediction,
        )  # fmt: skip

    def finish(self, run: Run | SchedulerRun) -> None:
        """See `Acceleration.finish`."""
        super().finish(run)
        if isinstance(run, SchedulerRun):
            return
        run.tally.read_clocks()
        report = run.report
        if self.guidance is not None and report.completed and not run.paired:
            self._tell(
                report,
                f"guidance={self.guidance.told!r} changes nothing in this call: {report.pipeline} computed every "
                "picture once a step (its guidance is distilled, or was not asked for)",
            )
        if run.tally.controlled and (unread := sum(step.reused == step.samples > 0 for step in report.steps)):
            self._tell(
                report,
                f"the ControlNet ran at all {len(report.steps)} steps, though at {unread} of them every sample reused "
                "a residual that holds its part already: pipelines call it before the transformer, where that is "
                "decided; control_guidance_end=... leaves it out for good",
            )
        if report.completed and run.tally.flops > 1.001 * report.baseline_flops:
            cost = run.tally.flops / report.baseline_flops
            steps = f"num_inference_steps={report.baseline_steps} in full, {len(report.steps)} steps here"
            self._tell(
                report,
                f"this setting made the call slower than the stock pipeline: {cost:.2f} times its FLOPs ({steps}); "
                "disable it, or choose a plan with fewer steps",
            )

    @property
    def answers(self) -> bool:
        """True if some calls of the denoiser are answered without running it."""
        policy = self._temporal.policy
        decides = getattr(policy, "tolerance", None) is not None or getattr(policy, "reuse", None) == "prediction"
        return self.guidance is not None or decides

    def answerer(self, module: Any) -> Any:
        """What may answer for a denoiser of ours, or None."""
        return self._denoisers.answerer(module)

    def _refresh(self, pipe: Any) -> None:
        super()._refresh(pipe)
        with self._lock:
            self._denoisers.refresh(pipe)

    def _unhook(self) -> None:
        self._denoisers.remove()


def _of_the_model(temporal: Policy | Forecast | None) -> Policy | None:
    """The policy, where what it reuses is kept inside the model, and not the predictions outside of it."""
    return None if isinstance(temporal, Forecast) or getattr(temporal, "reuse", None) == "prediction" else temporal


def _staged(
    method: SpatialMethod, call: Call, model_shift: float, sigmas: list[float], custom: bool
) -> tuple[Stage, ...]:
    """The stages of a call whose stock levels are `sigmas`; see `Acceleration.new_run`."""
    stages = method.stages(len(sigmas) - 1, model_shift)
    if custom:
        if (shifts := getattr(method, "shifts", "model")) != "model":
            raise ValueError(
                "custom sigmas= or timesteps= are not supported together with a plan that has shifts of its own: "
                f"{shifts=}; use shifts='model', whose stages are laid out along yours"
            )
        return redivided(stages, sigmas)
    if terminal := call.scheduler.config.shift_terminal:
        stages = (*stages[:-1], Stage(stages[-1].ratio, end_before_zero(stages[-1].sigmas, terminal)))
    return stages


def _geometry(pipe: Any, adapter: Adapter) -> Geometry:
    scale: int = getattr(pipe, "vae_scale_factor_spatial", None) or getattr(pipe, "vae_scale_factor", None) or 1
    images = adapter.to_image, adapter.from_image, adapter.prediction_image
    return Geometry(*images, adapter.patch, adapter.patch * scale)


def _reset_stock_caches(modules: list[Any]) -> None:
    """Caches of diffusers' own that the user enabled do not outlive a layout."""
    for module in modules:
        if hasattr(module, "_reset_stateful_cache"):
            module._reset_stateful_cache()
