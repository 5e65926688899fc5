"""A clock for steps: on a GPU the stream's own, read when somebody asks, so that nothing waits while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Started with the first step; each `lap` ends one."""

    def __init__(self) -> None:
        self._event: Any = None
        self._time = time.perf_counter()

    def start(self, device: torch.device) -> None:
        self._event, self._time = _event(device), time.perf_counter()

    def lap(self) -> Callable[[], float]:
        """The seconds since the last one, as a function; where a GPU made the step it waits for that to be done."""
        before, now = (self._event, self._time), time.perf_counter()
        self._time = now
        if before[0] is None:
            return lambda: now - before[1]
        self._event = event = _event(before[0].device)

        def seconds() -> float:
            event.synchronize()
            return float(before[0].elapsed_time(event)) / 1000

        return seconds


def _event(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
