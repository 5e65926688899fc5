"""Clocks for pipeline calls: whole calls, the steps in them, memory, how often the host waits, how long kernels run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch

from ralu_cache.engine.run import Run


class Stopwatch:
    """Marks on the device's own time line (CUDA events), or on the host's where there is no GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def laps(self) -> list[float]:
        """Seconds between marks; waits for the device once."""
        if not self._cuda:
            return [b - a for a, b in pairwise(self._marks)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in pairwise(self._marks)]


@dataclass(frozen=True)
class Timed:
    """One pipeline call: seconds in all, of each denoising step, and the most memory that torch held on the device."""

    seconds: float
    steps: list[float] = field(repr=False)
    peak_bytes: int = 0


@contextmanager
def step_ends(pipe: Any, mark: Callable[[], None]) -> Iterator[None]:
    """Within it, every denoising step of the pipeline ends with `mark()`, those of a plan and forecast ones included.

    A callback of the pipeline would not do: it is called once for each step of the stock schedule.
    """
    stock, own = type(vars(pipe)["scheduler"]), Run
    stock_step, close_step = stock.step, own.close_step

    @wraps(stock_step)
    def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock_step(scheduler, *args, **kwargs)
        if getattr(scheduler, "run", None) is None:  # of a run, its own end of the step counts
            mark()
        return output

    @wraps(close_step)
    def closed(*args: Any, **kwargs: Any) -> None:
        close_step(*args, **kwargs)
        mark()

    with patch.object(stock, "step", step), patch.object(own, "close_step", closed):
        yield


def time_call(pipe: Any, call: dict[str, Any]) -> Timed:
    """Runs the pipeline once. A step's time runs from one step's end to the next one's, the first from the start."""
    device = pipe.transformer.device
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    steps, whole = Stopwatch(device), Stopwatch(device)
    whole.mark()
    steps.mark()
    with step_ends(pipe, steps.mark):
        pipe(**call)
    whole.mark()
    (seconds,) = whole.laps()
    return Timed(seconds, steps.laps(), torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)


def waits_by_step(pipe: Any, call: dict[str, Any]) -> list[int] | None:
    """How often each denoising step makes the host wait for the GPU, by CUDA's own debug mode; None without a GPU.

    Up to a step's end counts what came after the one before, so the first has the pipeline's set-up too.
    """
    if not torch.cuda.is_available():
        return None
    ends: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def count() -> None:
            ends.append(sum("synchroniz" in str(warning.message) for warning in caught))

        torch.cuda.set_sync_debug_mode("warn")
        try:
            with step_ends(pipe, count):
                pipe(**call)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [end - start for start, end in pairwise([0, *ends])]


def busy_share(run: Callable[[], object]) -> tuple[float, str] | None:
    """(share of the run in which a kernel was at work, the profiler's table of kernels); None without a GPU."""
    if not torch.cuda.is_available():
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    averages = profiler.key_averages()
    kernels = sum(entry.self_device_time_total for entry in averages) / 1e6
    return kernels / seconds, averages.table(sort_by="self_device_time_total", row_limit=25)


class Deadline:
    """So many seconds from now; None for no end."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.perf_counter() + seconds

    def passes_within(self, seconds: float) -> bool:
        return self._end is not None and time.perf_counter() + seconds > self._end
