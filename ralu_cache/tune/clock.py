"""How long a call samples: from the first time its denoiser is asked to the last time that it has answered."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Clock:
    """Seconds of one call, with transitions, forecasts and the solver between, without text encoding and decoding.

    samples: that the denoiser was asked for in all.
    """

    cuda: bool
    samples: int = 0
    _first: Any = None
    _last: Any = None

    def begin(self, module: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self.samples += len(named["hidden_states"] if "hidden_states" in named else arguments[0])
        if self._first is None:
            self._first = self._now()

    def end(self, module: Any, arguments: Any, output: Any) -> None:
        self._last = self._now()

    @property
    def seconds(self) -> float:
        """Waits for the device. Raises RuntimeError if the denoiser was never called."""
        if self._first is None or self._last is None:
            raise RuntimeError("the pipeline did not call its denoiser")
        if not self.cuda:
            return float(self._last - self._first)
        self._last.synchronize()
        return float(self._first.elapsed_time(self._last)) / 1000

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextmanager
def clocked(pipe: Any) -> Iterator[Clock]:
    """The clock of the one call that is made within it."""
    both = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    denoisers, clock = [module for module in both if module is not None], Clock(torch.cuda.is_available())
    hooks = [module.register_forward_pre_hook(clock.begin, with_kwargs=True) for module in denoisers]
    hooks += [module.register_forward_hook(clock.end) for module in denoisers]
    try:
        yield clock
    finally:
        for hook in hooks:
            hook.remove()
