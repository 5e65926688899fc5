"""A run that lives in the scheduler alone: nothing is known of the model but that its loop calls `scheduler.step`.

The stock schedule is laid out in full; the pipeline is shown the levels of it that are computed, and a step goes on
over the others up to the next computed one: by stock steps on forecasts, or by a solver of ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ralu_cache.engine.clock import Clock
from ralu_cache.engine.identity import Snapshot
from ralu_cache.engine.levels import StockSchedule
from ralu_cache.engine.steppers import check_eta, kind_of, places_of
from ralu_cache.engine.times import first_below, in_form_of, is_at, number
from ralu_cache.history.conversions import Reading
from ralu_cache.history.solvers import Multistep
from ralu_cache.history.trail import Leap, Trail, leap, mend
from ralu_cache.report.report import Report
from ralu_cache.report.steps import StepRecord
from ralu_cache.temporal.prediction import Forecast

SHOWN = ("timesteps", "sigmas")  # of a scheduler, where they are tensors
Make = Callable[[Mapping[str, Any]], Any]
"""Calls the stock `step` with these arguments by name; gives what it gives, the sample first."""


@dataclass(frozen=True)
class Setting:
    """What a run does with the schedule: the plan and shape of forecasts, and a solver or None for stock steps.

    boundary: the share of the training time steps below which another denoiser is called, if there is one.
    """

    forecast: Forecast
    solver: Multistep | None = None
    boundary: float | None = None


class SchedulerRun:
    """One pass over a scheduler's stock schedule.

    full: its timesteps and sigmas. shown: those that the pipeline is shown, with whatever follows the last level; the
    very tensors where nothing is left out. count: of its steps. places: those that are computed, as indices; `start` is
    the first (`strength`). index: of the step that comes. report: None for the copy of a scheduler, which goes along.
    """

    def __init__(self, scheduler: Any, setting: Setting, report: Report | None, watched: bool = False) -> None:
        self.setting, self.report, self.watched = setting, report, watched
        self.full: dict[str, Tensor] = {
            name: vars(scheduler)[name] for name in SHOWN if torch.is_tensor(vars(scheduler).get(name))
        }
        quantity = "clean" if setting.solver is not None else setting.forecast.quantity_of(stages=1)
        scale = float(scheduler.config.get("sigma_data", 1.0))
        self._reading = Reading(kind_of(scheduler, self.full), quantity, scale)
        self._places = places_of(scheduler, self.full)
        self._ends_early = scheduler.config.get("final_sigmas_type") == "sigma_min"
        self.count = len(self._places)
        shares = (place.share for place in self._places)
        self.stock = StockSchedule((*shares, 0.0))
        self._times: list[float] = self.full["timesteps"].tolist()
        self._change: int | None = None  # the place from which another denoiser is called
        if setting.boundary is not None:  # without one there is none, though EDM has times below 0
            level = setting.boundary * float(scheduler.config.get("num_train_timesteps", 1000))
            self._change = first_below(self._times[: self.count], level)
        self._trail = Trail(setting.forecast.depth)
        self._made: Leap | None = None
        self._canvas: tuple[Tensor, Snapshot] | None = None  # in float32, and as it was handed out
        self._clock = Clock()
        self.index: int | None = None
        self.entering = False  # stock looks for its entry, and tells the scheduler of it
        self._begin(0)

    def _begin(self, start: int) -> None:
        self.start = start
        self.stock = self.stock.entered(start)
        computed = self.setting.forecast.computed([self.count - start])
        computed[-1] |= self._ends_early  # pipelines write the level of the last step behind it (Cosmos)
        if self._change is not None and self._change > start:  # what one denoiser gave does not tell another's
            computed[self._change - start] = True
        self.places = [start + step for step, wanted in enumerate(computed) if wanted]
        self.shown = dict(self.full)
        if self.leaves_out or start:
            for name, levels in self.full.items():
                self.shown[name] = levels[[*self.places, *range(self.count, len(levels))]]
        if self.report is not None:
            self.report.baseline_steps = self.count - start

    def enter_at(self, start: int) -> None:
        """Begin where the stock schedule is after so many steps (`strength`): the plan begins there too."""
        self._begin(start)

    @contextmanager
    def finding_entry(self) -> Iterator[None]:
        """While stock looks for its entry: what it tells the scheduler is told again once the run has its own."""
        self.entering = True
        try:
            yield
        finally:
            self.entering = False

    def forget(self) -> None:
        """Forecasts begin anew: another denoiser or prompt, or other guidance. What a solver steps on goes on, as in
        stock."""
        if self.setting.solver is None:
            self._trail = Trail(self.setting.forecast.depth)

    def beside(self) -> SchedulerRun:
        """The run of a copy of the scheduler, which stands where this one does and goes on by itself."""
        other = copy.copy(self)
        other.report, other._clock = None, Clock()
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> SchedulerRun:
        """Within a copy of the scheduler's whole state. Raises RuntimeError where steps are left out: who puts such a
        state back has the scheduler step several latents in turn, each with what was kept of another."""
        if self.leaves_out:
            raise RuntimeError(
                "the pipeline copies its scheduler's state, to step several views of a picture in turn, and forecasts "
                "cannot tell them apart; disable them, or compute every step ('forecast:1')"
            )
        return self.beside()

    def rest(self) -> None:
        """It is over: nothing is kept of what was computed, whoever still holds the run."""
        self._trail = Trail()
        self._made = self._canvas = None

    def close(self) -> None:
        """So is its call: the schedule goes too."""
        self.rest()
        self.full = self.shown = {}

    # ---- where the run stands

    @property
    def leaves_out(self) -> bool:
        """True if the pipeline is not shown all levels of its schedule."""
        return len(self.places) < self.count - self.start

    @property
    def done(self) -> int:
        """How many steps of the stock schedule are made."""
        return 0 if self.index is None else self.index - self.start

    @property
    def steps(self) -> int:
        """How many are made in all."""
        return self.count - self.start

    total = steps  # those that `strength` cut aren't counted
    passed = done  # every step is one of the stock schedule

    @property
    def stock_step(self) -> int:
        """The step of the stock schedule that comes."""
        return self.stock.after(self.done)

    @property
    def finished(self) -> bool:
        return self.index == self.count

    @property
    def shown_index(self) -> int:
        """How many of the levels that the pipeline is shown are passed."""
        return sum(place < (self.index or 0) for place in self.places)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept for forecasts and the solver."""
        return self._trail.nbytes + (0 if self._canvas is None else self._canvas[0].nbytes)

    # ---- a step

    def advance(self, arguments: dict[str, Any], begun: int | None, make: Make, output: Callable[[Tensor], Any]) -> Any:
        """The step that the pipeline makes, and those behind it that are not computed: what the last of them gives.

        arguments: of the stock `step`, by name. begun: the scheduler's own index in the schedule, if it has one. make:
        the stock step. output: wraps a sample as the stock step's result.
        """
        index = next(place for place in (begun, self.index, self.start) if place is not None)
        self._check(arguments, index)
        if self.index is None:
            self._write_back()
            self._clock.start(arguments["sample"].device)
        if self.setting.solver is not None:
            return self._solve(arguments, index, output)
        if not self.leaves_out:
            result = make(arguments)
            self._close(index, arguments["sample"], computed=True)
            return result
        return self._forecast(dict(arguments), index, make)

    def _forecast(self, given: dict[str, Any], index: int, make: Make) -> Any:
        model_output, sample, t = given["model_output"], given["sample"], given["timestep"]
        reading = self._reading
        if given.get("per_token_timesteps") is not None:  # a level for each token, and (LTX) a sign of its own
            reading = replace(reading, quantity="output")
        place = self._places[index]
        value = reading.value(place, sample.float(), model_output.float())
        if index == self._change:
            self.forget()
        self._trail = self._trail.record(place.share, value)
        if given.get("timestep_back") is not None and index:  # CogVideoX's solver keeps its history in the pipeline
            given["timestep_back"] = in_form_of(given["timestep_back"], index - 1, self._times, self.full["timesteps"])
        while True:
            result = make(given)
            self._close(index, sample, computed=index in self.places)
            index += 1
            if index == self.count or index in self.places:
                return result
            if "old_pred_original_sample" in given:
                given["old_pred_original_sample"], given["timestep_back"] = result[1], given["timestep"]
            given["timestep"] = in_form_of(t, index, self._times, self.full["timesteps"])
            given["sample"] = result[0]
            if given.get("per_token_timesteps") is not None:
                given["per_token_timesteps"] = given["per_token_timesteps"].clamp(max=self._times[index])
            how, place = self.setting.forecast, self._places[index]
            value = self._trail.forecast(place.share, how.order, how.gap, how.damping)
            given["model_output"] = reading.output(place, result[0].float(), value).to(model_output.dtype)

    def _solve(self, given: Mapping[str, Any], index: int, output: Callable[[Tensor], Any]) -> Any:
        """A solver's step from the canvas in float32 to the next computed level, or to the end."""
        solver = self.setting.solver
        assert solver is not None
        sample, model_output = given["sample"], given["model_output"]
        held = self._canvas
        ours = held is not None and sample is held[1].tensor and held[1].untouched
        x = held[0] if held is not None and ours else sample.float()
        place = self._places[index]
        self._trail = self._trail.record(place.share, self._reading.value(place, x, model_output.float()))
        x = mend(solver, self._trail, self._made if ours else None, x)
        left = [other for other in self.places if other > index]
        to = self._places[left[0]].share if left else 0.0
        x, self._made = leap(solver, self._trail, x, to, len(left) + 1)
        out = x.to(model_output.dtype)
        self._canvas = x, Snapshot.of(out, self.watched)
        for step in range(index, left[0] if left else self.count):
            self._close(step, sample, computed=step == index)
        return output(out)

    def _close(self, index: int, sample: Tensor, computed: bool) -> None:
        self.index = index + 1
        if self.report is None:
            return
        batch, levels = len(sample), self.stock.sigmas[index : index + 2]
        self.report.batch, self.report.completed = batch, self.finished
        note = partial(_record, index - self.start, levels, batch, computed, self.nbytes, self._clock.lap())
        self.report.note(note)

    # ---- what the pipeline gives

    def _check(self, given: Mapping[str, Any], index: int) -> None:
        """Raise for a step that is not the one that was shown, or that forecasts cannot stand for."""
        if not self.leaves_out and self.setting.solver is None:
            return
        check_eta(given.get("eta"))
        if self.setting.solver is not None and given.get("per_token_timesteps") is not None:
            raise ValueError("per_token_timesteps are not supported with solver=; leave the solver out")
        if given["model_output"].shape != given["sample"].shape:
            raise ValueError(
                f"the model's output {tuple(given['model_output'].shape)} is not what the scheduler steps with, a "
                f"tensor of the sample's shape {tuple(given['sample'].shape)}; no forecast can stand for it"
            )
        expected, t = self._times[index], given["timestep"]
        looks = not torch.is_tensor(t) or t.device.type == "cpu" or self.index is None  # else the device waits
        if index in self.places and (not looks or is_at(index, self._times, t)):
            return
        raise RuntimeError(
            f"step at timestep {number(t):g}, though {expected:g} was next: this pipeline goes over "
            f"its schedule in a way of its own, so {self.setting.forecast} cannot serve it; disable it"
        )

    def _write_back(self) -> None:
        """What the pipeline wrote into the levels that it was shown, it means of the stock schedule (Cosmos)."""
        if not self.leaves_out:
            return
        for name, levels in self.full.items():
            levels[[*self.places, *range(self.count, len(levels))]] = self.shown[name]


def _record(
    index: int, levels: tuple[float, ...], batch: int, computed: bool, held: int, seconds: Callable[[], float]
) -> StepRecord:
    """The record of a step, made when somebody reads the report; what the model costs is not known here."""
    return StepRecord(
        index=index, stage=0, sigma=levels[0], sigma_next=levels[1], tokens=0, calls=int(computed),
        flops=math.nan if computed else 0.0, seconds=seconds(), saved_flops=math.nan, samples=batch * computed,
        forecast=batch * (not computed), history_bytes=held,
    )  # fmt: skip
