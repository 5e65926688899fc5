"""TaylorSeer (arXiv 2503.06923): compute every few steps, forecast what the blocks give in between."""

from __future__ import annotations

from dataclasses import dataclass, field

from ralu_cache.plane.checks import check_choice, check_integer, check_per_stage
from ralu_cache.temporal.base import Counting, Forecasting, per_stage
from ralu_cache.temporal.policy import Situation


@dataclass(frozen=True)
class TaylorSeer(Counting, Forecasting):
    """Compute, then forecast `interval - 1` steps as a polynomial in sigma through the computed residuals.

    Published in step index; here in sigma, because steps are uneven and stages move sigma back. Any step that is
    computed for another reason (the first of a stage, the last before a transition) begins the interval anew.

    Important
        interval: one computed step in every so many, one number or one for each stage (the last of them serves all
            later ones); 1 computes all.
        order: degree of the forecast; a stage that starts afresh has too little history at first, and uses less.
    To tinker with
        per_layer: forecast the outputs of every layer's attention and MLP, as published, instead of the whole stack's
            residual ("lite"); the blocks' gates and norms then see the present step. Needs two outputs a layer in
            memory for each order, and every block's elementwise work.
        ramp: where the history starts, the intervals are 2, 4, 8, ... up to `interval`, so that a forecast reaches at
            most about twice as far as the computed steps that it continues lie apart. Computing the first steps and
            going on at once with the whole interval, as published (ramp=False, first=3), continues neighbours whose
            difference says little: on the embedded model, unguided, 50 steps, interval 8, that was 30.5 dB to the full
            run with 9 computed steps, the ramp 33.5 dB with 10 or, with last=0, 9 (16 prompts). Order 0 needs no ramp.
        first, last: full steps at the run's start and end.
        transition: see `ralu_cache.temporal.base.Rules`; "trend" asks for order 1 or more, and with `per_layer` nothing
            is carried over, so both are then as "reset".
        compute_stage_end, max_age: see `ralu_cache.temporal.base.Rules`.
    """

    interval: int | tuple[int, ...] = 3
    order: int = 1
    per_layer: bool = field(default=False, kw_only=True)
    ramp: bool = field(default=True, kw_only=True)
    first: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_per_stage("interval", self.interval, lambda value: check_integer("interval", value, 1))
        check_integer("order", self.order, 0)
        check_choice("per_layer", self.per_layer, (True, False))
        check_choice("ramp", self.ramp, (True, False))

    @property
    def caches(self) -> str:
        """See `Policy.caches`."""
        return "layers" if self.per_layer else "stack"

    def reuses(self, situation: Situation, age: int) -> bool:
        reach = age + 1
        due = reach >= per_stage(self.interval, situation.stage)
        return not due and not (self.ramp and self.order and reach >= self._ramped(situation, age))

    def _ramped(self, situation: Situation, age: int) -> int:
        """The longest interval: 2 + steps from the history's start, or from the last of `first`, to the newest."""
        start = 0 if self.transition == "inherit" else situation.step - situation.stage_step
        newest = situation.step - age - 1
        return 2 + newest - max(start, self.first - 1)
