"""ToCa (arXiv 2410.05317): between whole steps, attention comes from the cache and MLPs run for a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ralu_cache.plane.checks import check_choice, check_integer, check_number, check_per_stage, check_share
from ralu_cache.temporal.base import Counting, Rules, per_stage
from ralu_cache.temporal.policy import Refresh, Situation, TokenView

MEASURED = ("value", "key", "attention")
SCORES = (*MEASURED, "staleness", "even", "round-robin", "random")
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ToCa(Counting, Rules):
    """One computed step in `interval`; in between, only the MLPs run, and for a share of the tokens.

    Published for FLUX.1-dev, 50 steps: interval 4, ratio 0.1, score "attention", staleness 0.25, the first three steps
    computed. Here the score is one for all layers, not one for each; text tokens are refreshed in turn instead of by
    score; ratios fall with the model's own depth (the published code has another model's 27 layers); and the default
    score is "value", because the attention map forbids fused attention in computed steps (the same authors' DuCa,
    arXiv 2412.18911, found random tokens about as good).

    Important
        interval: one computed step in every so many, one number or one for each stage (the last of them serves all
            later ones); 1 computes all.
        ratio: share of the tokens, 0 to 1, on an average layer (see `layer_ratio`); one number or one for each stage.
        score: which tokens. "value", "key": those with the largest norms; "attention": those that received most;
            each weighted against `staleness`. "staleness": the oldest. Without looking at tokens: "round-robin", in
            raster order; "even", in turn as well, and spread over the picture; "random", seeded by the step.
    To tinker with
        staleness: weight of a token's age in intervals, against the measure scaled to norm 1 over a sample's tokens.
            At 4096 tokens an even measure is 1/64 each: then age decides unless few tokens stand out.
        text: refresh text tokens too, as great a share of them.
        first: full steps at the run's start.
        last, compute_stage_end, transition, max_age: see `ralu_cache.temporal.base.Rules`.
    """

    interval: int | tuple[int, ...] = 4
    ratio: float | tuple[float, ...] = 0.1
    score: str = field(default="value", kw_only=True)
    staleness: float = field(default=0.25, kw_only=True)
    text: bool = field(default=True, kw_only=True)
    first: int = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_per_stage("interval", self.interval, lambda value: check_integer("interval", value, 1))
        check_per_stage("ratio", self.ratio, lambda value: check_share("ratio", value))
        check_choice("score", self.score, SCORES)
        check_number("staleness", self.staleness, 0)
        check_choice("text", self.text, (True, False))

    @property
    def caches(self) -> str:
        return "layers+rows"

    @property
    def measures(self) -> tuple[str, ...]:
        """What computed steps must keep of the tokens, see `ralu_cache.temporal.policy.MEASURES`."""
        return (self.score,) if self.score in MEASURED else ()

    def reuses(self, situation: Situation, age: int) -> bool:
        return age + 1 < per_stage(self.interval, situation.stage)

    def count(self, situation: Situation, tokens: int) -> int:
        """How many of so many tokens an average layer refreshes."""
        return round(per_stage(self.ratio, situation.stage) * tokens)

    def counts(self, situation: Situation, tokens: int, singles: Sequence[bool]) -> tuple[int, ...]:
        """How many of so many tokens each layer refreshes; `singles` says which layers are single blocks."""
        ratio, mixed = per_stage(self.ratio, situation.stage), len(set(singles)) > 1
        shares = (
            layer_ratio(ratio, layer, len(singles), single if mixed else None) for layer, single in enumerate(singles)
        )
        return tuple(round(share * tokens) for share in shares)

    def refresh(self, situation: Situation, view: TokenView, text: int, singles: Sequence[bool]) -> Refresh:
        """See `PolicyState.refresh`."""
        image = self.rank(situation, view), self.counts(situation, view.age.shape[1], singles)
        if not self.text:
            return image, None
        turn = self.turns(situation, text, device=view.age.device).expand(len(view.age), text)
        return image, (turn, self.counts(situation, text, singles))

    def rank(self, situation: Situation, view: TokenView) -> Tensor:
        """(B, n) int64: all tokens of each sample, those to be refreshed first; a layer takes the first `counts`.

        Equal scores stand in the order of the tokens. Raises what `view.measure` raises for a measure not kept.
        """
        batch, tokens = view.age.shape
        if self.score in ("even", "round-robin", "random"):
            return self.turns(situation, tokens, self.score, view.age.device).expand(batch, tokens)
        score = view.age.to(torch.float32)
        if self.score in MEASURED:
            measure = view.measure(self.score).float()
            scaled = (measure / measure.norm(dim=1, keepdim=True)).nan_to_num()
            score = scaled + self.staleness / per_stage(self.interval, situation.stage) * score
        return score.argsort(dim=1, descending=True, stable=True)

    def turns(
        self, situation: Situation, tokens: int, kind: str = "round-robin", device: torch.device | None = None
    ) -> Tensor:
        """(n,) int64: an order of so many tokens, the same for all samples.

        "round-robin" and "even" begin where the step before left off, so that ceil(n / count) consecutive steps
        cover all tokens. "even" is ordered by the fractional parts of multiples of the golden ratio: any run of it is
        spread evenly over the tokens' raster. "random" is drawn for each step, by its number.
        """
        if kind == "random":
            return torch.randperm(tokens, generator=torch.Generator().manual_seed(situation.step)).to(device)
        order = torch.arange(tokens, device=device)
        if kind == "even":
            order = (order.double() * GOLDEN % 1).argsort(stable=True)
        return order.roll(-situation.step * max(self.count(situation, tokens), 1))

    def select(self, situation: Situation, view: TokenView) -> Tensor:
        """(B, n) bool: the first `count` of `rank`, the tokens that an average layer refreshes."""
        chosen = torch.zeros(view.age.shape, dtype=torch.bool, device=view.age.device)
        return chosen.scatter(1, self.rank(situation, view)[:, : self.count(situation, view.age.shape[1])], True)


def layer_ratio(ratio: float, layer: int, layers: int, single: bool | None) -> float:
    """Share of the tokens that one layer refreshes: R (1.5 - depth) (0.4 double | 1.6 single), at most 1.

    depth: layer / (layers - 1), of the whole model. single: None for a model whose blocks are all of one kind, whose
    factor is 1 (ours: none was published). With FLUX's 19 double and 38 single blocks the mean is 1.06 R.

    Raises ValueError for a layer that is not within 0 to layers - 1.
    """
    check_integer("layers", layers, 1)
    check_integer("layer", layer, 0, layers - 1)
    kind = 1.0 if single is None else 1.6 if single else 0.4
    return min(1.0, ratio * (1.5 - layer / max(layers - 1, 1)) * kind)
