"""A clock for steps: on a GPU the stream's own, read when somebody asks, so that nothing waits while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


class Clock:
    """Started with the first step; each `lap` ends one."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._event: Any = None
        self._time = time.perf_counter()

    def start(self, device: torch.device) -> None:
        self._device, self._event, self._time = device, _event(device), time.perf_counter()

    def lap(self) -> Callable[[], float]:
        """The seconds since the last one, as a function; where a GPU made the step it waits for that to be done."""
        before, now = self._event, time.perf_counter()
        spent, self._time = now - self._time, now
        if before is None:
            return partial(float, spent)
        self._event = _event(self._device)
        return Lap(before, self._event)


class Lap:
    """What lies between two events of a GPU's stream; a pickle or copy of it holds the seconds."""

    def __init__(self, before: Any, after: Any) -> None:
        self._before, self._after = before, after

    def __call__(self) -> float:
        self._after.synchronize()
        return float(self._before.elapsed_time(self._after)) / 1000

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (float, self())


def _event(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
