"""Forecasts of the prediction itself: at a step that is not computed the model is not called at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ralu_cache.history.lines import GAP, QUANTITIES
from ralu_cache.history.nodes import DEPTH
from ralu_cache.plane.checks import check_choice, check_integer, check_number, check_per_stage, check_share
from ralu_cache.temporal.base import per_stage

FEW = 4
"""Runs of so few steps, or fewer, are computed whole.

Measured on tiny-flux, six prompts, every second step forecast, PSNR to 50 steps against as many plain steps as were
computed: at 4 steps 0.4 dB more unguided and 4 dB less at guidance 3, at 3 steps 1.5 dB less in both.
"""
CARRIED = ("keep", "trend", "reset")


@dataclass(frozen=True)
class Forecast:
    """Compute every few steps; at the others the prediction goes on along the line through the computed ones.

    Its history is one of predictions on the canvas, so a transition carries it over: what was computed on coarse
    tokens goes on serving the fine ones. It costs a few latents of memory and next to nothing of time.

    For little or no guidance. Strongly guided predictions bend early, and lines run off: at guidance 6, every second
    coarse step of "ralu-15x" forecast took 40 points of what is drawn, where as many steps less took 15; forecasts in
    fine steps without guidance took nothing, and neither did fewer of those (`benchmarks/results/history`).

    Important
        interval: one computed step in every so many, one number or one for each stage (the last of them serves all
            later ones); 1 computes all. A stage's first step is always computed.
        tolerance: instead, compute as often as it takes: where a step is computed, the forecast that it replaces is
            compared with it (mean absolute difference over mean absolute value), and the next ones reach as far as
            keeps that at about this much: 0.2 is careful, 0.4 fast. Each sample decides for itself; each computed step
            waits for the device once.
    To tinker with
        quantity: what lies on lines: the "velocity", the "clean" estimate, or "auto": velocities, but the clean
            estimate in plans of stages, where it holds better over a transition.
        order: 1, a line; 2, a parabola; 0 holds the last value.
        gap: nodes of a line stand at least this far apart, in lengths of the forecast; on guided calls 1 was measured
            to serve better, on unguided ones worse (benchmarks/results/history/findings.md).
        damping: how much of the way from the last computed value to the line is gone.
        transition: "keep" moves nodes over a transition and reads them; "trend" shifts those to what the first step
            behind it computes, so that their slope alone goes on; "reset" forgets them.
        ramp: where a history begins, intervals grow: 2, 3, ... up to `interval`.
        first, last: so many computed steps at the run's start and end; at least one first.
        max_gap: with `tolerance`, at most so many steps from one computed step to the next.
        depth: nodes kept, more than `order`.

    Raises ValueError, with the value, for anything else.
    """

    interval: int | tuple[int, ...] = 3
    tolerance: float | None = field(default=None, kw_only=True)
    quantity: str = field(default="auto", kw_only=True)
    order: int = field(default=1, kw_only=True)
    gap: float = field(default=GAP, kw_only=True)
    damping: float = field(default=1.0, kw_only=True)
    transition: str = field(default="keep", kw_only=True)
    ramp: bool = field(default=True, kw_only=True)
    first: int = field(default=1, kw_only=True)
    last: int = field(default=0, kw_only=True)
    max_gap: int = field(default=4, kw_only=True)
    depth: int = field(default=DEPTH, kw_only=True)

    def __post_init__(self) -> None:
        check_per_stage("interval", self.interval, lambda value: check_integer("interval", value, 1))
        check_choice("quantity", self.quantity, QUANTITIES)
        check_integer("depth", self.depth, 1)
        check_integer("order", self.order, 0, 2)
        if self.order >= self.depth:
            raise ValueError(f"order {self.order} needs depth {self.order + 1} or more, got depth {self.depth}")
        check_number("gap", self.gap, 0)
        check_share("damping", self.damping)
        check_choice("transition", self.transition, CARRIED)
        check_choice("ramp", self.ramp, (True, False))
        check_integer("first", self.first, 1)
        check_integer("last", self.last, 0)
        check_integer("max_gap", self.max_gap, 1)
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, 0)
            if self.tolerance == 0:
                raise ValueError("tolerance must be above 0, got 0; interval=1 computes every step")

    def check_stages(self, stages: int) -> None:
        """Raises ValueError for a list of intervals of another length than the plan's."""
        if isinstance(self.interval, tuple) and len(self.interval) != stages:
            raise ValueError(f"interval={self.interval} is for {len(self.interval)} stages, but the plan has {stages}")

    def computed(self, stages: Sequence[int]) -> list[bool]:
        """Of every step of stages of so many steps each, whether it is computed; all of `FEW`."""
        found: list[bool] = []
        for stage, steps in enumerate(stages):
            fresh = stage == 0 or self.transition != "keep"
            due, gap = 0, 2 if self.ramp and fresh and self.order else self.most(stage)
            for step in range(steps):
                found.append(step == due)
                if step == due:
                    due, gap = due + min(gap, self.most(stage)), gap + 1
        total = len(found)
        if total <= FEW:
            return [True] * total
        return [wanted or step < self.first or step >= total - self.last for step, wanted in enumerate(found)]

    def most(self, stage: int) -> int:
        """The longest interval of a stage."""
        return per_stage(self.interval, stage)

    def quantity_of(self, stages: int) -> str:
        """What lies on lines in a plan of so many stages."""
        if self.quantity != "auto":
            return self.quantity
        return "clean" if stages > 1 and self.transition != "reset" else "velocity"
