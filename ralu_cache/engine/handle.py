"""The handle of an accelerated pipeline: what its calls' runs are made of, and the way back to the stock pipeline."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from ralu_cache.adapters.protocols import Adapter
from ralu_cache.engine.arguments import coarse_cost_of
from ralu_cache.engine.autoencoder import autoencoder_of
from ralu_cache.engine.call import Call, clear_frames
from ralu_cache.engine.context import entered
from ralu_cache.engine.denoisers import Denoisers
from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.levels import StockSchedule, redivided
from ralu_cache.engine.pipeline import undress
from ralu_cache.engine.predictions import predictions_of
from ralu_cache.engine.run import Run
from ralu_cache.history.solvers import Multistep
from ralu_cache.plane.budget import Budget
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.schedule import end_before_zero
from ralu_cache.plane.spatial import SpatialMethod, Stage
from ralu_cache.report.report import Report
from ralu_cache.temporal import Forecast, Policy
from ralu_cache.temporal.coefficients import Calibrated

logger = logging.getLogger("ralu_cache")


class Acceleration:
    """The handle of an accelerated pipeline: its report, and the way back to the stock pipeline."""

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
        self.again = again
        self.enabled = True
        self.guidance = guidance
        self._budget = budget
        self._pipe, self._method, self._plan = weakref.ref(pipe), method, plan
        self._temporal, self._solver = temporal, solver
        self._policy = _of_the_model(temporal.policy)
        self._report: Report | None = None
        self._told: set[str] = set()
        self._lock = threading.RLock()
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._denoisers = Denoisers(family, self._policy, self, temporal.policy is not None)
        self._refresh(pipe)
        self._end = weakref.finalize(pipe, self.disable)
        self._end.atexit = False

    @property
    def report(self) -> Report | None:
        """What the latest pipeline call did (`completed` is False if it was cut short); None before the first."""
        return self._report

    def disable(self) -> None:
        """Give back the stock pipeline, bit for bit. Calling it again does nothing.

        Within a call (a callback's, or another thread's) it waits for the end of the calls that are under way.
        """
        with self._lock:
            self.enabled = False
            if len(self._calls):
                return
            self._denoisers.remove()
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

    @property
    def wants_text_attention(self) -> bool:
        """True if regions are chosen by it."""
        return self._method is not None and "text_attention" in self._method.scorer.needs

    def new_run(self, call: Call, model_shift: float, sigmas: list[float], custom: bool) -> Run | None:
        """The run of a call whose stock levels are `sigmas` (`custom`: the caller's own); None if all is stock.

        What is refused is refused before there is a report of it.
        """
        parts = (self._method, self._temporal.policy, self.guidance, self._solver)
        if all(part is None for part in parts):
            return None
        num_inference_steps = len(sigmas) - 1
        geometry, method = _geometry(call.pipe, self._denoisers.adapter), self._method
        notice = None if method is None else method.overrides(num_inference_steps)
        if self._budget is not None:
            method = self._budget.plan(num_inference_steps, coarse_cost_of(call, geometry.pixels))
            notice = self._budget.told(num_inference_steps)
        stages: tuple[Stage, ...] = (Stage(1.0, tuple(sigmas)),)
        if method is not None:
            stages = _staged(method, call, model_shift, sigmas, custom)
        prediction = predictions_of(self._temporal.policy, self._solver, len(stages))
        self._report = Report(
            pipeline=type(call.pipe).__name__, spatial=self._plan, temporal=self._temporal.name,
            baseline_steps=num_inference_steps, solver="euler" if self._solver is None else self._solver.name,
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

    def finish(self, run: Run) -> None:
        """A run is over, at its end or before."""
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
        """Hook what the pipeline is made of now. Raises, before anything is changed, for what can't be served."""
        with self._lock:
            self._denoisers.refresh(pipe)

    def _tell(self, report: Report, notice: str | None) -> None:
        """Log a notice the first time, and note it in every report that it concerns."""
        if notice is None:
            return
        report.notices.append(notice)
        if notice not in self._told:
            logger.warning(notice)
            self._told.add(notice)


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
    names = ("vae_scale_factor_spatial", "vae_scale_factor", "vae_spatial_compression_ratio")
    scale = next(getattr(pipe, name) for name in names if hasattr(pipe, name))
    images = adapter.to_image, adapter.from_image, adapter.prediction_image
    return Geometry(*images, adapter.patch, adapter.patch * scale, adapter.fill)


def _reset_stock_caches(modules: list[Any]) -> None:
    """Caches of diffusers' own that the user enabled do not outlive a layout."""
    for module in modules:
        if hasattr(module, "_reset_stateful_cache"):
            module._reset_stateful_cache()
