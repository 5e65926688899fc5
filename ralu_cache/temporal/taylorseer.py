"""TaylorSeer (arXiv 2503.06923), "lite": compute every few steps, forecast the block stack's output in between."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ralu_cache.temporal.base import Rules, Situation, check_integer, check_per_stage, per_stage


@dataclass(frozen=True)
class TaylorSeer(Rules):
    """Compute, then forecast `interval - 1` steps as a polynomial in sigma through the computed residuals.

    Published in step index; here in sigma, because steps are uneven and stages move sigma back. Any step that is
    computed for another reason (the first of a stage, the last one) begins the interval anew.

    Important
        interval: one computed step in every so many, one number or one for each stage (the last of them serves all
            later ones); 1 computes all.
        order: degree of the forecast; a stage that starts afresh has too little history at first, and uses less.
    To tinker with
        first: full steps at the run's start, 3 as published (and at least order + 1 to forecast well from there).
        last, compute_stage_end, transition, max_age: see `ralu_cache.temporal.base.Rules`.
    """

    interval: int | tuple[int, ...] = 3
    order: int = 1
    first: int = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_per_stage("interval", self.interval, lambda value: check_integer("interval", value, 1))
        check_integer("order", self.order, 0)

    def admits(self, situation: Situation, total: Tensor, age: Tensor) -> Tensor:
        return age + 1 < per_stage(self.interval, situation.stage)
