"""The handle of a pipeline of a known family: its denoisers' hooks, and the runs of its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ralu_cache.adapters.finding import Finding
from ralu_cache.adapters.protocols import Adapter, Cost, Probed
from ralu_cache.engine.arguments import coarse_cost_of
from ralu_cache.engine.autoencoder import autoencoder_of
from ralu_cache.engine.call import Call
from ralu_cache.engine.denoisers import Denoisers
from ralu_cache.engine.experts import boundary_of
from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.handle import Acceleration
from ralu_cache.engine.levels import StockSchedule, redivided
from ralu_cache.engine.parts import Parts, Planner
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
    own_solver,
)
from ralu_cache.plane.budget import UNKNOWN
from ralu_cache.plane.schedule import end_before_zero
from ralu_cache.plane.spatial import SpatialMethod, Stage
from ralu_cache.profiles.facts import Facts
from ralu_cache.report.report import Report
from ralu_cache.temporal import Forecast


class FamilyAcceleration(Acceleration):
    """The handle of a pipeline of a known family."""

    def __init__(
        self,
        pipe: Any,
        family: type[Adapter],
        parts: Parts,
        again: Callable[[Any], Any],
        planner: Planner | None = None,
    ) -> None:
        """again: accelerates a copy of the pipeline alike. planner: gives each call parts of its own, not `parts`."""
        self._parts, self._planner = parts, planner
        self._possible = (parts,) if planner is None else planner.all
        policies = (
            next((each.inner for each in self._possible if each.inner is not None), None),
            next((each.inner_low for each in self._possible if each.inner_low is not None), None),
        )
        self._denoisers = Denoisers(family, policies, self, any(each.reuses for each in self._possible))
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
        return any(parts.wants_text_attention for parts in self._possible)

    @property
    def staged(self) -> bool:
        """True if a call may have spatial stages."""
        return any(parts.method is not None for parts in self._possible)

    def check(self, scheduler: Any) -> None:
        """See `Acceleration.check`: what each setting needs of it."""
        if is_staged(scheduler):
            return
        for parts in self._possible:
            _check_scheduler(scheduler, parts)

    def new_run(self, call: Call, scheduler: Any, given: Mapping[str, Any]) -> Run | SchedulerRun | None:
        """See `Acceleration.new_run`."""
        parts = self._parts_of(call, scheduler)
        if parts.stock:
            self._report = None if parts.notices else self._report
            for notice in parts.notices:
                self._tell(None, notice)
            return None
        temporal = parts.temporal
        if isinstance(temporal.policy, Forecast) and parts.method is None and not is_staged(call.scheduler):
            return self._run_outside(call, scheduler, Setting(temporal.policy), temporal.name)
        if scheduler is not call.scheduler:
            return None
        times = given.get("timesteps"), given.get("sigmas")
        custom = times[0] is not None or (times[1] is not None and not evenly_spaced(times[1]))
        shift = partial(model_shift, scheduler, given.get("mu"))
        run = self._run_inside(call, parts, levels_of(scheduler), shift, custom)
        if times[0] is None and times[1] is None:  # then pipelines go on with the number of steps they asked for
            run.believed_steps = given.get("num_inference_steps")
        return run

    def _parts_of(self, call: Call, scheduler: Any) -> Parts:
        """What a run of the call is made of."""
        if self._planner is None:
            return self._parts
        adapter = self._denoisers.adapter
        pixels = _geometry(call.pipe, adapter, not self._denoisers.probed).pixels
        facts = Facts.of(call.pipe, call.given, len(levels_of(scheduler)) - 1)
        coarse = coarse_cost_of(call, facts, adapter, pixels) if isinstance(adapter, Cost) else UNKNOWN
        return self._planner.parts(facts, coarse)

    def _run_inside(
        self, call: Call, parts: Parts, sigmas: list[float], shift: Callable[[], float], custom: bool
    ) -> Run:
        """The run of a call whose stock levels are `sigmas` (`custom`: the caller's own), with the denoiser's hooks."""
        num_inference_steps, method = len(sigmas) - 1, parts.method
        geometry = _geometry(call.pipe, self._denoisers.adapter, not self._denoisers.probed)
        stages: tuple[Stage, ...] = (Stage(1.0, tuple(sigmas)),)
        solver = parts.solver
        if method is not None:
            stages = _staged(method, call, shift(), sigmas, custom)
            solver = solver or own_solver(call.scheduler)
        prediction = predictions_of(parts.temporal.policy, solver, len(stages))
        self._report = Report(
            pipeline=type(call.pipe).__name__, spatial=parts.plan, temporal=parts.told,
            baseline_steps=num_inference_steps, solver="euler" if solver is None else solver.name,
            scheduler=type(call.scheduler).__name__, promised=parts.promised,
        )  # fmt: skip
        overrides = None if method is None or self._planner is not None else method.overrides(num_inference_steps)
        low = None if parts.low is None else parts.low.notice
        for told in (parts.temporal.notice, low, *parts.notices, overrides):
            self._tell(self._report, told)
        modules = [root.module for root in self._denoisers.roots]
        if method is not None or parts.guidance is not None:  # else calls are like those of any stock run
            _reset_stock_caches(modules)
        return Run(
            method, stages, geometry, autoencoder_of(call.pipe), self._report, parts.inner,
            lambda: _reset_stock_caches(modules), StockSchedule(tuple(sigmas)), call.watched, parts.guidance,
            prediction, None if parts.low is None else (modules[-1], parts.inner_low), boundary_of(call.pipe),
        )  # fmt: skip

    def finish(self, run: Run | SchedulerRun) -> None:
        """See `Acceleration.finish`."""
        super().finish(run)
        if isinstance(run, SchedulerRun):
            return
        run.tally.read_clocks()
        report = run.report
        if run.guidance is not None and report.completed and not run.tally.paired:
            self._tell(
                report,
                f"guidance={run.guidance.told!r} changes nothing in this call: {report.pipeline} computed every "
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
        return any(parts.answers for parts in self._possible)

    def answerer(self, module: Any) -> Any:
        """What may answer for a denoiser of ours, or None."""
        return self._denoisers.answerer(module)

    def _refresh(self, pipe: Any) -> None:
        super()._refresh(pipe)
        with self._lock:
            self._denoisers.refresh(pipe)

    def _unhook(self) -> None:
        self._denoisers.remove()


def _check_scheduler(scheduler: Any, parts: Parts) -> None:
    """Raises TypeError or ValueError for a scheduler that these parts cannot be served with."""
    temporal = parts.temporal.policy
    ours = isinstance(temporal, Forecast) and (parts.guidance is not None or temporal.tolerance is not None)
    ours = ours or getattr(temporal, "reuse", None) == "prediction"
    if parts.method is not None and is_unipc(scheduler):
        check_unipc(scheduler)
    elif parts.method is not None or parts.solver is not None or ours:
        check_flow_match_euler(scheduler)
    elif parts.reuses or parts.guidance is not None:
        check_steps(scheduler)


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


def _geometry(pipe: Any, adapter: Adapter, known: bool) -> Geometry:
    names = ("vae_scale_factor_spatial", "vae_scale_factor", "vae_spatial_compression_ratio")
    scale: int = next((found for name in names if (found := getattr(pipe, name, None))), 1)
    images = adapter.to_image, adapter.from_image, adapter.prediction_image
    return Geometry(*images, adapter.patch, adapter.patch * scale, adapter.fill, known)


def _reset_stock_caches(modules: list[Any]) -> None:
    """Caches of diffusers' own that the user enabled do not outlive a layout, or a batch. Goes through all modules."""
    for module in modules:
        if hasattr(module, "_reset_stateful_cache"):
            module._reset_stateful_cache()
