"""Choosers: who says, in the run, for which samples the model is asked and for which a forecast stands in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ralu_cache.engine.ranked import agreed
from ralu_cache.engine.signals import signal_of
from ralu_cache.history.control import Pace
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal.base import Counting
from ralu_cache.temporal.policy import Policy, PolicyState, Situation


@dataclass(frozen=True)
class Seen:
    """What a chooser may look at: the situation, and the present call's signals, made when they are asked for.

    layout: of the pipeline's samples. modulated: (B, n + extra, d); canvas: (B, C, H, W).
    """

    situation: Situation
    layout: TokenLayout
    modulated: Callable[[], Tensor]
    canvas: Callable[[], Tensor]


class Chooser(Protocol):
    """Says, step by step, for which samples the model is asked."""

    def skip(self, place: int, readable: Sequence[bool], seen: Callable[[], Seen]) -> set[int]:
        """The samples whose prediction is forecast at a place, of those that have one to read."""
        ...

    def learn(self, sample: int, place: int, sigma: float, error: float, later: Sequence[float]) -> None:
        """A sample was computed at a place. error: of the forecast that it replaces, nan if there was none.

        later: the levels of the steps to come in the stage.
        """
        ...

    def pick(self, rows: Sequence[int]) -> None:
        """Go on with some of the samples alone."""
        ...

    def moved(self) -> None:
        """A transition to another layout was made."""
        ...


class Verifier:
    """Predict, verify, and choose how far to go next: each sample keeps its forecasts' errors near a tolerance."""

    def __init__(self, tolerance: float, most: int, order: int) -> None:
        self.tolerance, self.most, self.order = tolerance, most, order
        self._paces: dict[int, Pace] = {}
        self._due: dict[int, int] = {}
        self._last: dict[int, float] = {}

    def skip(self, place: int, readable: Sequence[bool], seen: Callable[[], Seen]) -> set[int]:
        return {sample for sample, good in enumerate(readable) if good and self._due.get(sample, 0) > place}

    def learn(self, sample: int, place: int, sigma: float, error: float, later: Sequence[float]) -> None:
        pace, reach = self._paces.get(sample, Pace()), self._last.get(sample, math.nan) - sigma
        if not math.isnan(reach) and reach > 0 and not (math.isnan(error) and math.isnan(pace.reach)):
            pace = pace.after(error, reach, self.tolerance, self.order + 1)
        self._paces[sample], self._last[sample] = pace, sigma
        self._due[sample] = place + pace.gap(sigma, later, self.most)

    def pick(self, rows: Sequence[int]) -> None:
        for held in (self._paces, self._due, self._last):
            kept: dict[int, Any] = {place: held[row] for place, row in enumerate(rows) if row in held}
            held.clear()
            held.update(kept)

    def moved(self) -> None:
        self._last.clear()  # the level went up


class Watcher:
    """A temporal policy's own rule: it looks at its signal, and what it would reuse is forecast."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._state: Any = None
        self._previous: Tensor | None = None
        self._computed: dict[int, int] = {}  # where each sample last was

    def skip(self, place: int, readable: Sequence[bool], seen: Callable[[], Seen]) -> set[int]:
        now = seen()
        policy: object = self.policy
        ages = tuple(place - 1 - self._computed.get(sample, place - 1) for sample in range(len(readable)))
        if isinstance(policy, Counting):
            pairs = zip(readable, ages, strict=True)
            reuse = [good and policy.allows(now.situation, age) for good, age in pairs]
        else:
            device = now.layout.refined.device
            if self._state is None:
                self._state = self.policy.start(len(readable), device)
            state: PolicyState = self._state
            signal, good = signal_of(self.policy, now.layout, now.modulated, now.canvas), torch.tensor(readable)
            decision = agreed(
                state.decide(replace(now.situation, ages=ages), signal, self._previous, good.to(device))
            )
            self._previous, reuse = decision.signal, decision.reuse.tolist()
        return {sample for sample, reused in enumerate(reuse) if reused}

    def learn(self, sample: int, place: int, sigma: float, error: float, later: Sequence[float]) -> None:
        self._computed[sample] = place

    def pick(self, rows: Sequence[int]) -> None:
        self._computed = {place: self._computed[row] for place, row in enumerate(rows) if row in self._computed}
        pick = getattr(self._state, "pick", None)
        self._state = None if pick is None else pick(rows)
        self._previous = None if self._previous is None else torch.stack([self._previous[row] for row in rows])

    def moved(self) -> None:
        if self.policy.signal == "modulated":  # of tokens that are no more
            self._previous = None
