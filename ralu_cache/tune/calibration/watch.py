"""Uncached runs, watched: how much TeaCache's signal and the model's output change from one step to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.api import Acceleration, accelerate
from ralu_cache.history.residuals import History
from ralu_cache.plane.spatial import SpatialMethod
from ralu_cache.report.report import Report
from ralu_cache.temporal.base import relative_change
from ralu_cache.temporal.policy import Decision, PolicyState, Refresh, Situation, TokenView
from ralu_cache.temporal.teacache import TeaCache


@dataclass(frozen=True)
class Trace:
    """What one picture's branch did in one uncached run, step by step.

    situations: where the run stood. signal, output: mean|a - a_prev| / mean|a_prev| of the first block's modulated
    input and of the model's prediction, against the step before; nan at the first step of a stage, whose tokens are
    not those of the step before.
    """

    situations: tuple[Situation, ...]
    signal: tuple[float, ...]
    output: tuple[float, ...]


class Watch:
    """A temporal policy that computes everything and keeps what `WatchedBranch` saw.

    The prediction is the one that leaves the transformer, so in the mixed stage a coarse token counts by its area.
    """

    signal = "modulated"
    caches = "stack"
    measures = ()
    transition = "reset"
    max_age = None
    order = 0

    def __init__(self) -> None:
        self.branches: list[WatchedBranch] = []
        self.calling: WatchedBranch | None = None

    def start(self, batch: int, device: torch.device | str) -> PolicyState:
        """See `Policy.start`."""
        self.branches.append(WatchedBranch(self, TeaCache(0.0, "identity").start(batch, device)))
        return self.branches[-1]

    def see(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook of the transformer."""
        if self.calling is not None:
            self.calling.see(output[0])
            self.calling = None

    def traces(self) -> list[Trace]:
        """One for each picture and branch of every run; reads all values from the device at once."""
        return [trace for branch in self.branches for trace in branch.traces()]


class WatchedBranch:
    """The state of one branch of one run: TeaCache's own at threshold 0, which measures and never reuses."""

    def __init__(self, watch: Watch, state: PolicyState) -> None:
        self._watch, self._state = watch, state
        self._previous: Tensor | None = None
        self._situations: list[Situation] = []
        self._signal: list[Tensor] = []
        self._output: list[Tensor] = []

    def decide(
        self, situation: Situation, signal: Tensor | None, previous: Tensor | None, readable: Tensor
    ) -> Decision:
        """See `PolicyState.decide`."""
        decision = self._state.decide(situation, signal, previous, readable)
        self._situations.append(situation)
        self._signal.append(decision.distance)
        self._watch.calling = self
        return decision

    def select(self, situation: Situation, view: TokenView) -> Tensor | None:
        """See `PolicyState.select`."""
        return None

    def refresh(self, situation: Situation, view: TokenView, text: int, singles: Sequence[bool]) -> Refresh:
        """See `PolicyState.refresh`."""
        raise NotImplementedError

    def forecast(self, history: History, sigma: float, rows: Tensor | None = None) -> Tensor:
        """See `PolicyState.forecast`."""
        return self._state.forecast(history, sigma, rows)

    def see(self, prediction: Tensor) -> None:
        """Note the prediction (B, ...) of the call that was decided last."""
        if self._situations[-1].stage_step == 0 or self._previous is None:
            self._output.append(torch.full_like(self._signal[-1], torch.nan))
        else:
            self._output.append(relative_change(prediction, self._previous))
        self._previous = prediction

    def traces(self) -> list[Trace]:
        """One for each sample."""
        signal, output = (torch.stack(column, 1).tolist() for column in (self._signal, self._output))
        situations = tuple(self._situations)
        return [Trace(situations, tuple(x), tuple(y)) for x, y in zip(signal, output, strict=True)]


@contextmanager
def watching(pipe: Any, spatial: str | SpatialMethod | None = None) -> Iterator[tuple[Watch, Acceleration]]:
    """While it is open the pipeline's calls run uncached on the plan and are watched; then it is the stock one again.

    Raises what `accelerate` raises.
    """
    watch = Watch()
    with accelerate(pipe, spatial, watch) as handle:
        hook = pipe.transformer.register_forward_hook(watch.see)
        try:
            yield watch, handle
        finally:
            hook.remove()


def watch_runs(
    pipe: Any, calls: Iterable[Mapping[str, Any]], spatial: str | SpatialMethod | None = None
) -> tuple[list[Trace], Report]:
    """Runs the pipeline uncached, once for each of the calls' arguments, and returns the traces and the last report.

    The latents are not decoded. Leaves the pipeline without acceleration. Raises what `accelerate` raises, and
    ValueError if there are no calls.
    """
    with watching(pipe, spatial) as (watch, handle):
        for call in calls:
            pipe(**{**call, "output_type": "latent"})
        if handle.report is None:
            raise ValueError("there are no calls to calibrate on: give at least one prompt")
        return watch.traces(), handle.report
