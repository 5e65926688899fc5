"""Choosers: who says, in the run, for which samples the model is asked and for which a forecast stands in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ralu_cache.history.control import Pace
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import plane
from ralu_cache.temporal.base import CountState, Policy, PolicyState, Situation


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

    def skip(self, place: int, readable: Sequence[bool], seen: Callable[[], Seen]) -> set[int]:
        now = seen()
        device = now.layout.refined.device
        if self._state is None:
            self._state = self.policy.start(len(readable), device)
        if isinstance(self._state, CountState):
            reuse = self._state.count(now.situation, readable)
        else:
            state: PolicyState = self._state
            signal = signal_of(self.policy, now.layout, now.modulated, now.canvas)
            decision = state.decide(now.situation, signal, self._previous, torch.tensor(readable, device=device))
            self._previous, reuse = decision.signal, decision.reuse.tolist()
        return {sample for sample, reused in enumerate(reuse) if reused}

    def learn(self, sample: int, place: int, sigma: float, error: float, later: Sequence[float]) -> None:
        pass

    def pick(self, rows: Sequence[int]) -> None:
        pick = getattr(self._state, "pick", None)
        self._state = None if pick is None else pick(rows)
        self._previous = None if self._previous is None else torch.stack([self._previous[row] for row in rows])

    def moved(self) -> None:
        if self.policy.signal == "modulated":  # of tokens that are no more
            self._previous = None


def signal_of(
    policy: Policy, layout: TokenLayout, modulated: Callable[[], Tensor], canvas: Callable[[], Tensor]
) -> Tensor | None:
    """A policy's signal on a layout: tokens (B, n, d), or an image (B, C, H, W), of a video (B, C, F, H, W)."""
    kind = policy.signal
    if kind is None:
        return None
    if kind == "canvas":
        return _frames(canvas().float(), layout)
    tokens = modulated()[:, : layout.tokens]
    return _frames(plane(tokens, layout), layout) if kind == "plane" else tokens


def _frames(image: Tensor, layout: TokenLayout) -> Tensor:
    return image if layout.frames == 1 else image.unflatten(2, (layout.frames, -1))
