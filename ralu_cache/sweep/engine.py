"""The sweep itself: every setting on every batch of prompts, timed in pairs, judged, and written down as it comes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ralu_cache.quality.base import Metric, Pictures, SetMetric
from ralu_cache.report.report import Report
from ralu_cache.sweep.contenders import prepare, uncached
from ralu_cache.sweep.records import Batch, Record, Setting

FULL = "none"
UNCACHED = "_uncached"  # after the name of a metric: to the uncached run of the same plan, not to the full run
Task = tuple[Batch, list[tuple[Setting, bool]]]
"""A batch, the settings to run on it, and for each whether it is timed."""


@dataclass(frozen=True)
class Outcome:
    """A record, and the pictures (B, Y, X, 3) in [0, 1] that it judges; None if the call failed."""

    record: Record
    pictures: Pictures | None = None


@dataclass(frozen=True)
class Bench:
    """What measures one setting on one batch: the pipeline, the arguments of every call, the metrics.

    full_steps: of the stock run that all are compared with, in time and likeness. call: further arguments of every
    pipeline call; a negative prompt is repeated for the batch.
    """

    pipe: Any
    full_steps: int
    call: Mapping[str, Any]
    metrics: Sequence[Metric]
    set_metrics: Sequence[SetMetric] = ()
    _warm: set[Setting] = field(default_factory=set)

    def run(self, batch: Batch, tasks: Sequence[tuple[Setting, bool]]) -> Iterator[Outcome]:
        """One outcome for each (setting, timed?) of the batch, as it is ready.

        A timed setting gets a full run right before it, and a warm-up before its first. What fails is recorded as
        such; the references are made once, when the first task needs them.
        """
        shown: dict[Setting, Pictures] = {}

        def reference(setting: Setting) -> Pictures:
            if setting not in shown:
                shown[setting] = self._call(setting, batch)[0]
            return shown[setting]

        for setting, timed in tasks:
            full = Setting(FULL, self.full_steps, setting.height, setting.width)
            try:
                yield self._measure(setting, full, batch, timed, reference)
            except Exception as error:  # of any library below; the sweep goes on
                yield Outcome(Record(setting, batch, error=f"{type(error).__name__}: {error}"))

    def _measure(
        self, setting: Setting, full: Setting, batch: Batch, timed: bool,
        reference: Callable[[Setting], Pictures],
    ) -> Outcome:  # fmt: skip
        references = reference(full)
        if timed and setting not in self._warm:
            self._call(setting, batch)
            self._warm.add(setting)
        full_seconds = self._call(full, batch)[1] if timed else math.nan
        pictures, seconds, report = self._call(setting, batch)
        values: dict[str, tuple[float, ...]] = {}
        for metric in self.metrics:
            values[metric.name] = tuple(metric(pictures, references if metric.reference else None, batch.prompts))
        if (plan := uncached(setting)) is not None:
            plain = reference(plan)
            for metric in (m for m in self.metrics if m.reference):
                values[metric.name + UNCACHED] = tuple(metric(pictures, plain, batch.prompts))
        features = {
            metric.name: tuple(
                tuple(float(f"{x:.5g}") for x in row) for row in metric.features(pictures, batch.prompts)
            )
            for metric in self.set_metrics
        }
        record = Record(setting, batch, seconds, full_seconds, *self._flops(report), values, features)
        return Outcome(record, pictures)

    def _flops(self, report: Report | None) -> tuple[float, float]:
        """(of the call, of the full run); a report's own baseline has the steps that its call was asked for."""
        if report is None or not report.baseline_steps:
            return math.nan, math.nan
        return report.flops, report.baseline_flops * self.full_steps / report.baseline_steps

    def _call(self, setting: Setting, batch: Batch) -> tuple[Pictures, float, Report | None]:
        """(pictures, seconds of the call, what it says of itself)"""
        arguments = {**self.call, "prompt": list(batch.prompts), "height": setting.height, "width": setting.width}
        if isinstance(negative := arguments.get("negative_prompt"), str):
            arguments["negative_prompt"] = [negative] * len(batch.prompts)
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        with prepare(self.pipe, setting) as prepared:
            pipe = self.pipe if prepared.pipe is None else prepared.pipe
            _finish()
            start = time.perf_counter()
            images = pipe(
                **arguments, num_inference_steps=prepared.steps, generator=generators, output_type="np"
            ).images
            _finish()
            seconds = time.perf_counter() - start
            report = prepared.report()
        return np.asarray(images, dtype=np.float32), seconds, report


def _finish() -> None:
    """Wait for the device: a call that has returned may still be running there."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def tasks_of(
    settings: Sequence[Setting], batches: Sequence[Batch], rounds: int, done: Iterable[Record], retry: bool = False
) -> list[Task]:
    """What is still to be run, batch by batch, so that all settings have seen equally many pictures at any time.

    rounds: in so many first batches every setting is timed. done: records that are there; those with an error count
    as done unless `retry`.
    """
    there = {record.key for record in done if record.error is None or not retry}
    found = []
    for number, batch in enumerate(batches):
        missing = [(setting, number < rounds) for setting in settings if (setting, batch) not in there]
        if missing:
            found.append((batch, missing))
    return found
