"""The handle of a pipeline of which nothing is known but that its loop calls `scheduler.step`.

Forecasts and solvers need no more: nothing is hooked in the model, whatever it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from ralu_cache.adapters.registry import unserved
from ralu_cache.engine.call import Call
from ralu_cache.engine.handle import Acceleration
from ralu_cache.engine.scheduler_run import SchedulerRun, Setting
from ralu_cache.engine.steppers import STEPPERS, check_flow_match_euler, check_steps, is_flow_match_euler
from ralu_cache.history.solvers import Multistep
from ralu_cache.temporal.prediction import Forecast

logger = logging.getLogger("ralu_cache")


class AnyAcceleration(Acceleration):
    """The handle of any pipeline with a scheduler whose steps are deterministic."""

    def __init__(
        self,
        pipe: Any,
        forecast: Forecast | None,
        name: str,
        solver: Multistep | None,
        again: Callable[[Any], Any],
    ) -> None:
        """name: of the forecasts, in reports. again: accelerates a copy of the pipeline alike."""
        check_pipeline(pipe)
        self._forecast, self._name, self._solver = forecast, name, solver
        super().__init__(pipe, again)

    def check(self, scheduler: Any) -> None:
        """See `Acceleration.check`."""
        if self._forecast is None and self._solver is None:
            return
        if self._solver is not None and not is_flow_match_euler(scheduler):
            check_flow_match_euler(scheduler)
        check_steps(scheduler)

    def new_run(self, call: Call, scheduler: Any, given: Mapping[str, Any]) -> SchedulerRun | None:
        """See `Acceleration.new_run`."""
        if self._forecast is None and self._solver is None:
            return None
        setting = Setting(self._forecast or Forecast(1), self._solver)
        solver = "euler" if self._solver is None else self._solver.name
        return self._run_outside(call, scheduler, setting, self._name, solver)


def check_pipeline(pipe: Any) -> None:
    """Raise TypeError for what is no pipeline with a scheduler of its own, naming the first thing that is missing."""
    name = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline) or not callable(pipe):
        raise TypeError(unserved(pipe, f"{name} is not a diffusers pipeline with a __call__()"))
    inner = [part for part, value in vars(pipe).items() if isinstance(value, DiffusionPipeline)]
    if inner:
        raise TypeError(f"{name} runs pipelines of its own; accelerate those: {', '.join(f'pipe.{n}' for n in inner)}")
    if vars(pipe).get("scheduler") is None:
        raise TypeError(
            f"{name} has no pipe.scheduler, which forecasts and solvers need, one of {', '.join(STEPPERS)}"
        )
