"""What a temporal policy is: what it is told at a denoiser call, what it decides, and the protocols that it follows.

Every policy decides per sample and before any block runs; a sample's decisions never depend on its neighbours. Sigma 1
is noise, 0 clean. Pure tensors, no models.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ralu_cache.history.residuals import History

TRANSITIONS = ("reset", "trend", "inherit", "kept")

@dataclass(frozen=True)
class Situation:
    """Where a run stands when one denoiser call begins.

    step, steps: steps made so far in this run, and in all; a run that starts in mid-schedule counts from its start.
    stage, stage_step, stage_steps: the stage, the steps made in it so far, and in all.
    ends_stage: a transition to another layout follows this step.
    sigma: level of this step, 1 noise to 0 clean.
    ages: of each sample of the call, how many steps in a row were reused since all of it was computed; empty where
        nothing was. From the ledger, which knows.
    made: what depends on the step alone, by whoever makes it once for all its calls.

    Raises ValueError for counts that do not fit together.
    """

    step: int
    steps: int
    stage_step: int
    stage_steps: int
    ends_stage: bool
    sigma: float
    stage: int = 0
    ages: tuple[int, ...] = field(default=(), compare=False)
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not (0 <= self.stage_step <= self.step < self.steps and self.stage_step < self.stage_steps):
            raise ValueError(
                f"steps count from 0: got step {self.step} of {self.steps}, "
                f"stage_step {self.stage_step} of {self.stage_steps}"
            )


@dataclass(frozen=True, eq=False)
class Decision:
    """What a policy decided for one call.

    reuse: (B,) bool, the samples whose blocks are skipped and whose residual is forecast.
    distance: (B,) float32, this step's change of the signal; nan where none was measured.
    threshold: what the added-up distances were held against; nan for policies without one.
    signal: what the caller keeps and hands over as `previous` at the next step; None for policies without a signal.
    total: (B,) float32, the added-up increments that were held against the threshold; None without such a sum.
    """

    reuse: Tensor
    distance: Tensor
    threshold: float
    signal: Tensor | None = None
    total: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TokenView:
    """What is known of the tokens of a call to a policy that chooses some of them; all but `measure` are (B, n).

    age: int32, steps since the token's feature was computed, 1 for the step before.
    valid: bool, computed for this very token; False where it came from a parent or its noise was changed.
    kept: bool, the token is the same as before the latest transition; all True in the first stage.
    ahead: float32, sigma now less the level at which it was computed; above 0 after a transition moved sigma back.
    measure: gives (B, n) float32 by name, see `MEASURES`.
    """

    age: Tensor
    valid: Tensor
    kept: Tensor
    ahead: Tensor
    measure: Callable[[str], Tensor]


Refresh = tuple[tuple[Tensor, tuple[int, ...]], tuple[Tensor, tuple[int, ...]] | None]
"""For image and text tokens: (B, n) int64, those that matter most first, and how many of them each layer takes."""

MEASURES = {
    "key": "norm of the token's keys, mean over layers",
    "value": "norm of the token's values, mean over layers",
    "attention": "attention that the token received when it was last measured, mean over layers",
    "change": "relative change of the token's residual between its two latest computations",
}


class PolicyState(Protocol):
    """What a policy remembers of one branch (the samples of some calls, step after step) of one run.

    May have `pick(rows)`, the state of some of the samples (numbers); without it, they begin anew when others go.
    """

    def decide(
        self, situation: Situation, signal: Tensor | None, previous: Tensor | None, readable: Tensor
    ) -> Decision:
        """Compute or reuse, per sample; called once a step, and what it says must be done.

        signal: the policy's signal now: "modulated" (B, n, d), "canvas" or "plane" (B, C, H, W), or None.
        previous: `Decision.signal` of the step before, on the present layout; None if there is none or it is stale.
        readable: (B,) bool, the samples whose last residual may be used.
        """
        ...

    def select(self, situation: Situation, view: TokenView) -> Tensor | None:
        """(B, n) bool: the tokens to compute in samples that reuse; None for none: always, without "rows" in `caches`.

        Called after `decide` at every step for which residuals are at hand, whatever was decided.
        """
        ...

    def refresh(self, situation: Situation, view: TokenView, text: int, singles: Sequence[bool]) -> Refresh:
        """With `caches` "layers+rows": the image tokens and the text tokens whose MLPs run in samples that reuse.

        text: how many text tokens there are; singles: of each layer, whether it is a single block.
        """
        ...

    def forecast(self, history: History, sigma: float, rows: Tensor | None = None) -> Tensor:
        """The residual at `sigma`, (B, n, d), or (k, n, d) of the samples `rows`: (k,) indices or a (B,) mask.

        history: (level (B,) or (B, n), residual (B, n, d)) of the computed steps, newest first; nan levels are unused.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    """A temporal policy's configuration; frozen, so it serves any number of runs at once."""

    @property
    def signal(self) -> str | None:
        """What it looks at.

        "modulated": the first block's modulated input (B, n, d) on the layout's tokens; "plane": the same, spread on
        the fine token grid (B, d, 2Y, 2X); "canvas": the latent image (B, C, H, W); None: nothing.
        """
        ...

    @property
    def caches(self) -> str:
        """What is kept of a computed step.

        "stack": the residual of the whole block stack; "rows": that, and every layer's keys and values, so that some
        tokens alone can be run through the blocks; "layers": the outputs of every layer's attention and MLP, which are
        forecast one by one; "layers+rows": the same, and where it reuses, the MLPs of some tokens run (see `refresh`).
        """
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """With `caches` "layers+rows": the `MEASURES` that computed steps are to take; "change" is always there."""
        ...

    @property
    def transition(self) -> str:
        """ "reset": the first step of a stage is computed, and all is forgotten; "trend": all but how residuals moved.

        "inherit": residuals are carried over and may serve the first step; "kept": they are carried over, and serve the
        tokens that the transition left as they are.
        """
        ...

    @property
    def max_age(self) -> int | None:
        """Every token is computed at least once in any so many consecutive steps; None for no bound."""
        ...

    @property
    def order(self) -> int:
        """Degree of the forecast; `order + 1` residuals are to be kept."""
        ...

    def start(self, batch: int, device: torch.device | str) -> PolicyState:
        """The state for one branch of a new run of `batch` samples."""
        ...
