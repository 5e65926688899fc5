"""Two forecasters of others, written anew from their papers for this library's registry: temporal="spectrum", "freqca".

They stand for those methods in a comparison on stock steps; neither is its authors' code. Both forecast the residual of
the whole block stack on one full-resolution stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebvander
from torch import Tensor

from ralu_cache import register_temporal
from ralu_cache.history.residuals import History
from ralu_cache.plane.checks import check_integer, check_number, check_share
from ralu_cache.temporal import Decision, Situation
from ralu_cache.temporal.base import Rules, RuleState


@dataclass(frozen=True)
class Spectrum(Rules):
    """Spectrum (arXiv 2603.01623): Chebyshev polynomials in the step's number, fitted to all computed steps by ridge
    regression, forecast the next ones; the windows between computed steps grow.

    The paper forecasts what the last block gives; here it is that less what went into the first one, which is what this
    library keeps. Defaults are those of its code for FLUX.

    growth: by how much the window of 2 grows with every computed step. degree: of the polynomials. ridge: its penalty.
    mix: how much of the forecast is theirs; the rest is the line through the last two. first: computed steps in front.
    """

    growth: float = 0.75
    degree: int = field(default=4, kw_only=True)
    ridge: float = field(default=0.1, kw_only=True)
    mix: float = field(default=1.0, kw_only=True)
    first: int = field(default=5, kw_only=True)
    last: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("growth", self.growth, 0)
        check_integer("degree", self.degree, 1)
        check_number("ridge", self.ridge, 0)
        check_share("mix", self.mix)

    @property
    def order(self) -> int:
        """So many residuals are kept, less one."""
        return 99

    def admits(self, situation: Situation, total: Tensor) -> Tensor:
        """True at the steps between the windows' ends."""
        return torch.full_like(total, not windows(situation.steps, self.first, self.growth)[situation.step], dtype=bool)

    def start(self, batch: int, device: torch.device | str) -> SpectrumState:
        """See `Rules.start`."""
        return SpectrumState(self, batch, device)


@cache
def windows(steps: int, first: int, growth: float) -> tuple[bool, ...]:
    """Of every step, whether it is computed: the first ones, then the last of every window."""
    found, window, skipped = [], 2.0, 0
    for step in range(steps):
        computed = step < first or (skipped + 1) % math.floor(window) == 0
        if computed and step >= first:
            window = round(window + growth, 3)
        skipped = 0 if computed else skipped + 1
        found.append(computed)
    return tuple(found)


class SpectrumState(RuleState):
    """Knows besides which number the step of a level had."""

    policy: Spectrum

    def __init__(self, policy: Rules, batch: int, device: torch.device | str) -> None:
        super().__init__(policy, batch, device)
        self.steps: dict[float, int] = {}
        self.all = 1

    def decide(
        self, situation: Situation, signal: Tensor | None, previous: Tensor | None, readable: Tensor
    ) -> Decision:
        """See `PolicyState.decide`."""
        self.steps[float(np.float32(situation.sigma))] = situation.step
        self.all = situation.steps
        return super().decide(situation, signal, previous, readable)

    def forecast(self, history: History, sigma: float, rows: Tensor | None = None) -> Tensor:
        """See `PolicyState.forecast`; all samples are computed at the same steps."""
        nodes = [(float(level.flatten()[0]), values) for level, values in history]
        places = [self.steps[level] for level, _ in nodes if math.isfinite(level)]
        now = self.steps[float(np.float32(sigma))]
        weights = chebyshev_weights(places, now, self.all, self.policy.degree, self.policy.ridge, self.policy.mix)
        pairs = zip(weights, nodes, strict=False)
        total = sum(weight * values.float() for weight, (_, values) in pairs if weight)
        assert isinstance(total, Tensor)
        forecast = total.to(nodes[0][1].dtype)
        return forecast if rows is None else forecast[rows]

    def pick(self, rows: Sequence[int]) -> SpectrumState:
        """See `RuleState.pick`."""
        part = super().pick(rows)
        assert isinstance(part, SpectrumState)
        part.steps, part.all = self.steps, self.all
        return part


def chebyshev_weights(
    places: Sequence[int], now: int, steps: int, degree: int, ridge: float, mix: float
) -> tuple[float, ...]:
    """What each computed step (newest first) weighs in the forecast of step `now` of so many.

    t = 2 step / steps - 1; T(t) (X'X + ridge I)^-1 X' with the rows T_0(t_i) ... T_degree(t_i) of X, `mix` of it, and
    1 - mix of the line through the newest two.
    """
    times = 2 * np.array([*places, now], np.float64) / steps - 1
    rows = chebvander(times, degree)
    design, at = rows[:-1], rows[-1]
    weights = mix * (at @ np.linalg.solve(design.T @ design + ridge * np.eye(degree + 1), design.T))
    reach = 0.0 if len(places) < 2 else (now - places[0]) / (places[0] - places[1])
    weights[0] += (1 - mix) * (1 + reach)
    if len(places) > 1:
        weights[1] -= (1 - mix) * reach
    return tuple(weights.tolist())


@dataclass(frozen=True)
class FreqCa(Rules):
    """FreqCa (arXiv 2510.08669): of the cumulative residual, low frequencies are reused, high ones forecast.

    One computed step in every `interval`. The high band goes on along the second-order polynomial through the last
    three computed steps (the paper's Hermite basis: through three points it is the same curve in any basis). share: of
    the frequencies of an axis that count as low; the paper names no figure that holds for latents as small as ours.
    """

    interval: int = 5
    share: float = field(default=0.25, kw_only=True)
    first: int = field(default=3, kw_only=True)
    last: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("interval", self.interval, 1)
        check_share("share", self.share)

    @property
    def order(self) -> int:
        """See `Policy.order`."""
        return 2

    def admits(self, situation: Situation, total: Tensor) -> Tensor:
        """True but at every `interval`-th step behind the first ones."""
        due = (situation.step - self.first + 1) % self.interval == 0
        return torch.full_like(total, not due, dtype=bool)

    def start(self, batch: int, device: torch.device | str) -> FreqCaState:
        """See `Rules.start`."""
        return FreqCaState(self, batch, device)


class FreqCaState(RuleState):
    """Forecasts the bands apart."""

    policy: FreqCa

    def forecast(self, history: History, sigma: float, rows: Tensor | None = None) -> Tensor:
        """See `PolicyState.forecast`."""
        along = super().forecast(history, sigma, rows)
        newest = history[0][1] if rows is None else history[0][1][rows]
        return newest + high_band((along - newest).float(), self.policy.share).to(newest.dtype)


def high_band(tokens: Tensor, share: float) -> Tensor:
    """Without the lowest `share` of the frequencies of both axes; square grids of tokens (B, n, d), float32."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ValueError(f"a square grid of tokens is needed, got {tokens.shape[1]} tokens")
    spectrum = torch.fft.rfft2(tokens.unflatten(1, (side, side)), dim=(1, 2))
    low = [torch.fft.fftfreq(side).abs() <= share / 2, torch.fft.rfftfreq(side) <= share / 2]
    spectrum[:, low[0][:, None] & low[1][None]] = 0
    return torch.fft.irfft2(spectrum, s=(side, side), dim=(1, 2)).flatten(1, 2)


@cache
def register() -> None:
    """Once a process."""
    register_temporal("spectrum", Spectrum)
    register_temporal("freqca", FreqCa)
