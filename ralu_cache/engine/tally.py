"""Tally: what the calls of a step cost, and how long it took, as it is told to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ralu_cache.adapters.protocols import Cost
from ralu_cache.engine.course import Course
from ralu_cache.plane.spatial import Stage
from ralu_cache.report.report import Report
from ralu_cache.report.steps import BranchRecord, StepRecord

BranchNotes = Sequence[Callable[[], BranchRecord]]
_NONE = (0, 0.0)  # samples of calls that were answered by forecasts, and their FLOPs


class Tally:
    """The counts of the step that is under way; `close` notes them and begins the next.

    calls: of the denoiser, that ran; asked: those and the ones that were answered. guided: whether guidance was
    computed; None while it is not known, or there is nothing to guide. controlled: some ControlNet was called in the
    run; paired: some call was one of a pair, with and without the prompt; flops: of all its calls so far.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.controlled = self.paired = False
        self.flops = 0.0
        self._asked_first = 0  # calls that the pipeline made in the first step
        self._events: list[tuple[Any, Any]] = []  # before and after each step
        self._forecast = _NONE
        self.start(None)
        self._clear()

    def start(self, device: torch.device | None) -> None:
        """The first step begins now."""
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._clock, self._event = time.perf_counter(), None if self._gpu is None else _event(self._gpu)

    def count_call(self, costs: Cost, call: Mapping[str, Any], samples: int, course: Course) -> None:
        """Note one denoiser call on so many samples (0: it was answered), and what by `costs` it would cost in full.

        What only some steps call (skip-layer guidance), the plain run calls at as large a share of its own steps.
        """
        if not self._asked_first:
            first, after = costs.flops(call), costs.later(call)
            later = first if after is call else costs.flops(after)
            self.report.baseline_flops += first + later * (self.report.baseline_steps - 1)
        elif self.asked >= self._asked_first:
            self.report.baseline_flops += costs.flops(call) * (self.report.baseline_steps / len(course.shown))
        self.asked += 1
        if samples:
            self.calls += 1
            self._samples += samples

    def add_flops(self, flops: float, saved: float = 0.0) -> None:
        """Note what (a part of) the present call costs, and how much more it would without reuse."""
        self.flops += flops
        if len(self.costs) < self.calls:
            self.costs.append((flops, saved))
        else:
            before = self.costs[-1]
            self.costs[-1] = (before[0] + flops, before[1] + saved)

    def spare(self, flops: float) -> None:
        """Note what a part of a call that guidance leaves out would have cost."""
        self._spared += flops

    def spare_by_forecast(self, samples: int, flops: float) -> None:
        """Note that a call was not made for so many of its samples, and what they would have cost."""
        before = self._forecast
        self._forecast = before[0] + samples, before[1] + flops

    def check_asked(self, copied: bool) -> None:
        """Raises RuntimeError where the denoiser was not called, as far as is known here, for a step that is made.

        copied: by a copy of its scheduler that the pipeline made within the call.
        """
        if self.asked:
            return
        if copied:
            raise RuntimeError(
                "the pipeline steps copies of its scheduler, several for one call of the denoiser, which stages and "
                "reuse of blocks cannot follow; use temporal='forecast:3', which leaves out whole calls"
            )
        raise RuntimeError(
            "the denoiser ran without ralu_cache's hook (it was replaced within the call, its hooks were removed, "
            "or it ran in a thread that does not have the call's context); call accelerate(pipe, ...) again"
        )

    def close(self, course: Course, tokens: int, notes: BranchNotes) -> None:
        """Note the step that was made on so many tokens a sample, for the report; the next begins."""
        now, index = time.perf_counter(), course.index
        place = index, course.places[index], tokens
        figures = self.calls, self.costs, now - self._clock, self._samples, self.guided, self._spared
        forecast = self._forecast if self.asked else None
        held = 0 if course.prediction is None else course.prediction.nbytes
        self.report.note(partial(_record, self.report, course.stages, place, figures, forecast, held, notes))
        if self._gpu is not None:
            event = _event(self._gpu)
            self._events.append((self._event, event))
            self._event = event
        if not self._asked_first:
            self._asked_first = self.asked
        self._clock = now
        self._clear()

    def read_clocks(self) -> None:
        """On a GPU: the seconds of each step as its events measured them; waits for the last of them."""
        for place, (before, after) in enumerate(self._events):
            after.synchronize()
            steps = self.report.steps
            steps[place] = replace(steps[place], seconds=before.elapsed_time(after) / 1000)
        self._events.clear()

    def _clear(self) -> None:
        self.calls = self._samples = self.asked = 0
        self.costs: list[tuple[float, float]] = []
        self.guided: bool | None = None
        self._spared = 0.0
        self._forecast = _NONE


def _event(device: torch.device) -> Any:
    """An event that a GPU's stream passes now."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _record(
    report: Report,
    stages: Sequence[Stage],
    place: tuple[int, tuple[int, int], int],
    figures: tuple[Any, ...],
    forecast: tuple[int, float] | None,
    held: int,
    notes: BranchNotes,
) -> StepRecord:
    """The record of a step, from what was noted of it; made when somebody reads the report.

    forecast: None where the model was not asked, which spares as much as the step before would have cost. held: bytes
    of the predictions that are kept.
    """
    index, (stage, step), tokens = place
    calls, costs, seconds, samples, guided, spared = figures
    if forecast is None:
        before = report.latest
        forecast = before.asked, before.flops + before.saved_flops
    sigma, sigma_next = stages[stage].sigmas[step : step + 2]
    return StepRecord(
        index=index,
        stage=stage,
        sigma=sigma,
        sigma_next=sigma_next,
        tokens=tokens,
        calls=calls,
        flops=sum(flops for flops, _ in costs),
        seconds=seconds,
        branches=tuple(note() for note in notes),
        saved_flops=sum(saved for _, saved in costs) + forecast[1],
        samples=samples,
        guided=guided,
        spared_flops=spared,
        forecast=forecast[0],
        history_bytes=held,
    )
