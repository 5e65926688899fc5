"""Adaptive (ours): what won the composition study, with one knob from faithful to fast."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ralu_cache.plane.checks import check_choice, check_integer, check_per_stage, check_share
from ralu_cache.temporal.base import Counting, Forecasting, per_stage
from ralu_cache.temporal.policy import MEASURES, TRANSITIONS, Situation, TokenView

SCORES = ("region", "staleness", "random", "change", "key", "value")


@dataclass(frozen=True)
class Adaptive(Counting, Forecasting):
    """Computes every few steps and forecasts the others in sigma; trends go on behind transitions.

    The study behind it (`benchmarks/results/composition`): at the first step of a stage nothing that was cached can
    stand for a computation, but how each token's residual was changing goes on ("trend"), worth 0.6 to 1.6 dB at the
    same cost. It pays most to reuse in the coarse stage, whose single steps matter least to the picture, and not to
    compute the last step before a transition; then every second step of the others. Refreshing some tokens between
    computed steps (`ratio`), and letting tokens wait that re-enter known levels ("kept"), work and are here, but did
    not beat whole steps at equal FLOPs on the embedded model.

    Important
        interval: one computed step in every so many, 1 faithful, 2 to 4 fast; one number, which leaves a coarse first
            stage to its forecast, or one for each stage (the last serves all later ones).
        ratio: share of the tokens refreshed in the other steps (row-sparse recompute), one number or one for each
            stage; 0 refreshes none, and then no keys and values are kept.
    To tinker with
        transition: "kept": a transition moves sigma back up, and the tokens that it left as they are wait, served from
            what is known of them at these levels, until sigma has come down to where they were computed last;
            "trend", "reset", "inherit": see `Rules`.
        score: which tokens are refreshed: "region" (those that the latest transition kept, then the longest not
            computed), "staleness", "random", or one of `ralu_cache.temporal.policy.MEASURES` but "attention". Norms of
            keys are all but equal in models that normalise keys: there "key" is decided by rounding.
        ramp: see `TaylorSeer`; here it counts from the start of each stage.
        order, first, last, compute_stage_end, max_age: see `TaylorSeer` and `ralu_cache.temporal.base.Rules`.

    Raises ValueError, with the value, for anything else.
    """

    interval: int | tuple[int, ...] = 2
    ratio: float | tuple[float, ...] = field(default=0.0, kw_only=True)
    score: str = field(default="region", kw_only=True)
    order: int = field(default=1, kw_only=True)
    ramp: bool = field(default=True, kw_only=True)
    last: int = field(default=0, kw_only=True)
    compute_stage_end: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_per_stage("interval", self.interval, lambda value: check_integer("interval", value, 1))
        check_per_stage("ratio", self.ratio, lambda value: check_share("ratio", value))
        check_choice("score", self.score, SCORES)
        check_integer("order", self.order, 0)
        check_choice("ramp", self.ramp, (True, False))

    @property
    def transitions(self) -> tuple[str, ...]:
        """The values that `transition` may have."""
        return TRANSITIONS

    @property
    def caches(self) -> str:
        """See `Policy.caches`."""
        refreshes = any(self.ratio) if isinstance(self.ratio, tuple) else self.ratio
        return "rows" if refreshes or self.transition == "kept" else "stack"

    def reuses(self, situation: Situation, age: int) -> bool:
        return self.transition == "kept" or not self._due(situation)

    def select(self, situation: Situation, view: TokenView) -> Tensor:
        """See `PolicyState.select`; what may not be reused is always among the chosen."""
        if self._due(situation):
            chosen = ~(view.kept & (view.ahead > 0))
        else:
            chosen = torch.zeros_like(view.valid)
            if count := round(per_stage(self.ratio, situation.stage) * view.age.shape[1]):
                order = self._rank(situation, view).argsort(dim=1, descending=True, stable=True)
                chosen.scatter_(1, order[:, :count], True)
        if self.max_age is not None:
            chosen |= view.age >= self.max_age
        return chosen if self.transition == "inherit" else chosen | ~view.valid

    def _due(self, situation: Situation) -> bool:
        """True at the steps of a stage that are computed, whatever the tokens: 0, 2, 6, ... up to the interval."""
        interval = per_stage(self.interval, situation.stage)
        more_stages = situation.steps - situation.step > situation.stage_steps - situation.stage_step
        if isinstance(self.interval, int) and interval > 1 and situation.stage == 0 and more_stages:
            interval = situation.stage_steps
        gap = 2 if self.ramp and self.order else interval
        due = 0
        while due < situation.stage_step:
            due += min(gap, interval)
            gap *= 2
        return due == situation.stage_step

    def _rank(self, situation: Situation, view: TokenView) -> Tensor:
        """(B, n) float32: the higher, the sooner a token is refreshed."""
        if self.score == "staleness":
            return view.age.float()
        if self.score == "region":
            return view.age / situation.steps + view.kept.float()
        if self.score == "random":  # from the step alone: the same for every sample, whatever its neighbours
            generator = torch.Generator().manual_seed(situation.step)
            return torch.rand(view.age.shape[1], generator=generator).to(view.age.device).expand(view.age.shape)
        assert self.score in MEASURES
        return view.measure(self.score)
