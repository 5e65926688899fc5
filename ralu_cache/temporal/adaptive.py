"""Adaptive (ours): TaylorSeer's few computed steps, and in each step only the tokens that need it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ralu_cache.temporal.base import (
    MEASURES,
    Rules,
    Situation,
    TokenView,
    check_choice,
    check_integer,
    check_per_stage,
    check_share,
    per_stage,
)

SCORES = ("region", "staleness", "random", "change", "key", "value")


@dataclass(frozen=True)
class Adaptive(Rules):
    """Computes every few steps, refreshes some tokens in between, and lets tokens wait that re-enter known levels.

    All tokens are forecast in sigma, each from its own last two computed values; so are the keys and values that
    fresh tokens attend to. A stage's first step is computed, and then one step in every `interval`; in the steps
    between, the `ratio` of tokens with the highest `score` runs through the blocks (row-sparse recompute).

    Important
        interval: one computed step in every so many, one number or one for each stage (the last serves all later ones).
        ratio: share of the tokens refreshed in the other steps, one number or one for each stage; 0 refreshes none.
        transition: "reset" starts afresh after each transition; "kept": a transition moves sigma back up, and the
            tokens that it left as they are wait, served from what is known of them at these levels, until sigma has
            come down to where they were computed last.
    To tinker with
        score: "region" (refined by the latest transition last, then the longest not computed), "staleness", "random",
            or one of `ralu_cache.temporal.base.MEASURES` but "attention".
        order, first, last, compute_stage_end, max_age: see `TaylorSeer` and `ralu_cache.temporal.base.Rules`.

    Raises ValueError, with the value, for anything else.
    """

    interval: int | tuple[int, ...] = 2
    ratio: float | tuple[float, ...] = field(default=0.0, kw_only=True)
    score: str = field(default="key", kw_only=True)
    order: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_per_stage("interval", self.interval, lambda value: check_integer("interval", value, 1))
        check_per_stage("ratio", self.ratio, lambda value: check_share("ratio", value))
        check_choice("score", self.score, SCORES)
        check_integer("order", self.order, 0)

    @property
    def caches(self) -> str:
        """See `Policy.caches`."""
        return "rows"

    def admits(self, situation: Situation, total: Tensor, age: Tensor) -> Tensor:
        serves = self.transition == "kept" or not self._due(situation)
        return torch.full_like(age, serves, dtype=torch.bool)

    def select(self, situation: Situation, view: TokenView) -> Tensor:
        """See `PolicyState.select`; what may not be reused is always among the chosen."""
        if self._due(situation):
            chosen = ~(view.kept & (view.ahead > 0))
        else:
            chosen = torch.zeros_like(view.valid)
            if count := round(per_stage(self.ratio, situation.stage) * view.age.shape[1]):
                chosen.scatter_(1, self._rank(situation, view).topk(count, 1).indices, True)
        if self.max_age is not None:
            chosen |= view.age >= self.max_age
        return chosen if self.transition == "inherit" else chosen | ~view.valid

    def _due(self, situation: Situation) -> bool:
        return situation.stage_step % per_stage(self.interval, situation.stage) == 0

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
