"""The rules that all temporal policies share: what must be computed in any case, and the ways in which they decide.

A policy either adds up distances, as TeaCache does, or counts steps; what is not computed is forecast: the *residual*
(output minus input of the whole block stack), from earlier ones. Pure tensors, no models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ralu_cache.history.residuals import History, extrapolate
from ralu_cache.plane.checks import check_choice, check_integer, check_number, check_per_stage
from ralu_cache.temporal.policy import Decision, Refresh, Situation, TokenView

REUSES = ("residual", "prediction")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What every policy of ours must compute, whatever its distances say.

    first, last: so many first and last steps of the run; at least one first step, for there is nothing to reuse.
    compute_stage_end: the last step before a transition, from which the next regions are chosen.
    transition: "reset" computes the first step of every stage and forgets what was cached. "trend" computes it too, but
        every token keeps (or gets from its parent) the change of the residual with sigma in which the stage before it
        ended, and is forecast along that until the new stage has computed twice: of a residual after a transition the
        value is new, but `ralu_cache.history.residuals.DAMPING` of its movement goes on (only with an order of 1 or
        more and one residual of the whole stack). "inherit" lets residuals serve the first step that were carried over
        the transition; "kept" lets those tokens use theirs that the transition left as they are, and computes the
        others (only where `caches` is "rows").
    max_age: every sample is computed at least once in any so many consecutive steps; 0 and 1 never reuse, None sets
        no bound.
    reuse: what stands in where nothing is computed. "residual": that of the blocks, in the model's input. "prediction":
        a forecast of the whole prediction (see `ralu_cache.temporal.prediction`), for which the model is not called but
        for what the policy's signal needs; only where `caches` is "stack". With "trend" predictions from before a
        transition are shifted to what the first step behind it computes, with "inherit" they are read as they are; the
        first step of a stage is computed in any case.

    Raises ValueError, with the value, for anything else.
    """

    first: int = 1
    last: int = 1
    compute_stage_end: bool = True
    transition: str = "reset"
    max_age: int | None = None
    reuse: str = "residual"

    def __post_init__(self) -> None:
        check_integer("first", self.first, 1)
        check_integer("last", self.last, 0)
        check_choice("compute_stage_end", self.compute_stage_end, (True, False))
        check_choice("transition", self.transition, self.transitions)
        check_choice("reuse", self.reuse, REUSES)
        if self.reuse == "prediction" and self.caches != "stack":
            raise ValueError(
                f"reuse='prediction' needs a policy that keeps the residual of the whole stack, and this one keeps "
                f"{self.caches!r}; leave out what refreshes tokens or forecasts layers"
            )
        if self.max_age is not None:
            check_integer("max_age", self.max_age, 0)

    @property
    def transitions(self) -> tuple[str, ...]:
        """The values that `transition` may have."""
        return ("reset", "inherit")

    @property
    def signal(self) -> str | None:
        """See `Policy.signal`."""
        return None

    @property
    def caches(self) -> str:
        """See `Policy.caches`."""
        return "stack"

    @property
    def measures(self) -> tuple[str, ...]:
        """See `Policy.measures`."""
        return ()

    @property
    def order(self) -> int:
        """See `Policy.order`."""
        return 0

    def forced(self, situation: Situation) -> bool:
        """True if every sample must be computed at this step."""
        return (
            situation.step < self.first
            or situation.step >= situation.steps - self.last
            or (self.compute_stage_end and situation.ends_stage)
            or (self.restarts and situation.stage_step == 0)
        )

    @property
    def restarts(self) -> bool:
        """True if every stage begins with a computed step."""
        return self.transition in ("reset", "trend")

    def young(self, age: int) -> bool:
        """True where one more reuse, after `age` of them, keeps within `max_age`."""
        return self.max_age is None or age + 1 < self.max_age

    def prepare(self, situation: Situation, signal: Tensor | None) -> Tensor | None:
        """The signal as it is compared and kept."""
        return signal

    def increment(self, distance: Tensor, stage: int = 0) -> Tensor:
        """What a distance (B,), met in that stage, adds to the sum since the last computed step."""
        return distance

    def threshold_at(self, situation: Situation) -> float:
        """What the sum is held against, nan where the policy has no such number."""
        return math.nan

    def select(self, situation: Situation, view: TokenView) -> Tensor | None:
        """See `PolicyState.select`."""
        return None

    def refresh(self, situation: Situation, view: TokenView, text: int, singles: Sequence[bool]) -> Refresh:
        """See `PolicyState.refresh`."""
        raise NotImplementedError

    def admits(self, situation: Situation, total: Tensor) -> Tensor:
        """(B,) bool: True where the policy's own rule lets the residual be reused.

        total: (B,) the increments since the last computed step, this one's included.
        """
        raise NotImplementedError

    def start(self, batch: int, device: torch.device | str) -> RuleState:
        """The state for one branch of a new run of `batch` samples."""
        return RuleState(self, batch, device)


class RuleState:
    """What the rules remember of one branch: per sample, the added-up distance since it was last computed."""

    def __init__(self, policy: Rules, batch: int, device: torch.device | str) -> None:
        self.policy = policy
        self.total = torch.zeros(batch, dtype=torch.float32, device=device)

    def decide(
        self, situation: Situation, signal: Tensor | None, previous: Tensor | None, readable: Tensor
    ) -> Decision:
        """See `PolicyState.decide`. Raises ValueError for a missing signal or one of another batch or shape."""
        if readable.shape != self.total.shape:
            raise ValueError(f"readable must be {tuple(self.total.shape)}, got {tuple(readable.shape)}")
        kept = self._prepare(situation, signal)
        distance = torch.full_like(self.total, torch.nan)
        if kept is not None and previous is not None:
            distance = relative_change(kept, previous)
        reuse, total = self.admit(situation, distance, readable)
        return Decision(reuse, distance, self.policy.threshold_at(situation), kept, total)

    def admit(self, situation: Situation, distance: Tensor, readable: Tensor) -> tuple[Tensor, Tensor]:
        """`Decision.reuse` and `Decision.total`, given the distance (B,); called once a step, as `decide` does."""
        total = self.total + self.policy.increment(distance, situation.stage)
        reuse = self.policy.admits(situation, total) & readable
        if self.policy.signal is not None:
            reuse = reuse & distance.isfinite()
        if self.policy.forced(situation):
            reuse = torch.zeros_like(reuse)
        for sample, age in enumerate(situation.ages or (0,) * len(reuse)):
            if not self.policy.young(age):
                reuse[sample] = False
        self.total = torch.where(reuse, total, 0.0)
        return reuse, total

    def select(self, situation: Situation, view: TokenView) -> Tensor | None:
        """See `PolicyState.select`."""
        return self.policy.select(situation, view)

    def refresh(self, situation: Situation, view: TokenView, text: int, singles: Sequence[bool]) -> Refresh:
        """See `PolicyState.refresh`."""
        return self.policy.refresh(situation, view, text, singles)

    def forecast(self, history: History, sigma: float, rows: Tensor | None = None) -> Tensor:
        """See `PolicyState.forecast`; polynomials in sigma of the policy's order (see `extrapolate`)."""
        nodes = list(history[: self.policy.order + 1])
        if rows is not None:
            nodes = [(level[rows], values[rows]) for level, values in nodes]
        return extrapolate(nodes, sigma, self.policy.order)

    def pick(self, rows: Sequence[int]) -> RuleState:
        """The state of some samples alone."""
        part = type(self)(self.policy, len(rows), self.total.device)
        part.total = self.total[torch.tensor(rows, device=self.total.device)]
        return part

    def _prepare(self, situation: Situation, signal: Tensor | None) -> Tensor | None:
        if self.policy.signal is None:
            return None
        if signal is None or len(signal) != len(self.total):
            given = "None" if signal is None else tuple(signal.shape)
            raise ValueError(f"signal {self.policy.signal!r} of {len(self.total)} samples is needed, got {given}")
        return self.policy.prepare(situation, signal)


class Counting:
    """A part of policies that look at no signal: they decide on the host, from the numbers of steps alone."""

    def reuses(self, situation: Situation, age: int) -> bool:
        """True where the policy's own rule lets a sample's residual be reused, after `age` reuses in a row."""
        raise NotImplementedError

    def allows(self, situation: Situation, age: int) -> bool:
        """True where all rules let it; decided once a step for all samples of that age."""
        known: bool | None = situation.made.get(age)
        if known is None:
            policy: Any = self
            known = not policy.forced(situation) and policy.young(age) and self.reuses(situation, age)
            situation.made[age] = known
        return known

    def foresee(self, plan: Sequence[Situation]) -> None:
        """Decide every step of a run before it begins, for samples that do at each as is decided."""
        age = 0
        for situation in plan:
            age = age + 1 if self.allows(situation, age) else 0

    def start(self, batch: int, device: torch.device | str) -> RuleState:
        """See `Rules.start`; nothing of it is on the device."""
        return CountState(self, batch, "cpu")  # type: ignore[arg-type]


class CountState(RuleState):
    """The state of a policy that counts: none."""

    def admit(self, situation: Situation, distance: Tensor, readable: Tensor) -> tuple[Tensor, Tensor]:
        """See `RuleState.admit`."""
        policy: Any = self.policy
        ages = situation.ages or (0,) * len(readable)
        pairs = zip(readable.tolist(), ages, strict=True)
        return torch.tensor([good and policy.allows(situation, age) for good, age in pairs]), self.total


@dataclass(frozen=True, kw_only=True)
class Forecasting(Rules):
    """The rules of what goes on along earlier residuals, and by default also behind a transition."""

    transition: str = "trend"

    @property
    def transitions(self) -> tuple[str, ...]:
        """The values that `transition` may have."""
        return ("reset", "trend", "inherit")


@dataclass(frozen=True)
class Accumulating(Forecasting):
    """TeaCache's rule (arXiv 2411.19108): reuse while the distances added up since the last computed step stay below
    `threshold`, one number or one for each stage (the last of them serves all later ones); 0 never reuses.
    """

    threshold: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_per_stage("threshold", self.threshold, lambda value: check_number("threshold", value, 0))

    def threshold_at(self, situation: Situation) -> float:
        return float(per_stage(self.threshold, situation.stage))

    def admits(self, situation: Situation, total: Tensor) -> Tensor:
        threshold = self.threshold_at(situation)
        if threshold == 0:
            return torch.zeros_like(total, dtype=torch.bool)
        return total.isfinite() & (total < threshold)


def relative_change(signal: Tensor, previous: Tensor) -> Tensor:
    """mean|m - m_prev| / mean|m_prev| of each sample (arXiv 2411.19108): (B, ...) twice -> (B,) float32.

    nan or inf where `previous` is zero or either is not finite. Each sample is reduced by a call of its own, so its
    bits do not depend on the batch. Raises ValueError for unequal shapes: they are signals of two layouts.
    """
    if signal.shape != previous.shape:
        raise ValueError(f"signals of one layout are needed, got {tuple(signal.shape)} after {tuple(previous.shape)}")
    pairs = ((m.float(), before.float()) for m, before in zip(signal, previous, strict=True))
    return torch.stack([(m - before).abs().mean() / before.abs().mean() for m, before in pairs])


def per_stage(setting: T | tuple[T, ...], stage: int) -> T:
    """A setting that is one for all stages, or one for each, the last of them serving all later ones."""
    return setting[min(stage, len(setting) - 1)] if isinstance(setting, tuple) else setting
