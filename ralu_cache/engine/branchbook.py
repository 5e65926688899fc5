"""The branches of a run: to each denoiser call the one that computes the same samples, step after step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ralu_cache.engine.branches import Branch
from ralu_cache.engine.identity import Identity
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.report.steps import BranchRecord
from ralu_cache.temporal.policy import Policy


class BranchBook:
    """Those of the step before, and of this one in the order of the calls. watched: a callback sees tensors.

    fill: see `Geometry`.
    """

    def __init__(self, watched: bool, fill: int = 1) -> None:
        self.watched, self.fill = watched, fill
        self._before: list[Branch] = []
        self._used: list[Branch] = []

    def clear(self) -> None:
        self._before, self._used = [], []

    def find(
        self,
        denoiser: object,
        numbers: tuple[int, ...],
        layout: TokenLayout,
        tensors: Mapping[str, Tensor],
        settings: tuple[Any, ...],
        policy: Policy,
    ) -> Branch:
        """The temporal state of the samples that the present call computes; a new one if they can't be told.

        numbers: which of the pipeline's samples the call is on; layout: of its tokens. tensors, settings: see
        `Identity`. policy: the denoiser's. A branch serves one call a step.
        """
        used = self._used
        for branch in self._before:
            if branch.denoiser is not denoiser or branch.cache.layout is not layout or branch in used:
                continue
            if branch.identity.is_still(numbers, tensors, settings):
                used.append(branch)
                return branch
        identity = Identity.of(numbers, tensors, settings, self.watched)
        free = [branch for branch in self._before if branch.denoiser is denoiser and branch not in used]
        followed = (branch.followed(identity, layout) for branch in free)
        found = next((branch for branch in followed if branch is not None), None)
        used.append(found or Branch(policy, layout, identity, denoiser, fill=self.fill))
        return used[-1]

    def settle(self, batch: int) -> None:
        """The pipeline has `batch` samples only, of which the others that a call brought are copies."""
        for branch in self._used:
            branch.identity = branch.identity.with_samples([number % batch for number in branch.identity.samples])

    def transfer(self, layout_of: Callable[[tuple[int, ...]], TokenLayout], fresh: bool) -> None:
        """Move what all have cached to another layout. layout_of: that of some samples; fresh: all noise is new."""
        for branch in self._used:
            layout = layout_of(branch.identity.samples)
            branch.transfer(layout, torch.full((layout.batch, layout.tokens), fresh, device=layout.refined.device))

    def notes(self, costs: Sequence[tuple[float, float]]) -> list[Callable[[], BranchRecord]]:
        """What each did in this step; asked for before a transition moves what they have cached."""
        notes = []
        for branch, cost in zip(self._used, costs, strict=False):
            notes.append(branch.report(*cost))
        return notes

    def close_step(self) -> None:
        """The step is over; a branch that paused in it begins anew."""
        self._before, self._used = self._used, []
