"""What one step of a run did, and in it each denoiser call under a temporal policy: as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BranchRecord:
    """What a temporal policy did in one denoiser call (one guidance branch) of one step.

    reused: per sample, True if its blocks were passed over. fresh: per sample, how many of its tokens were computed
    while the others were passed over; 0 where all or none were. distance: per sample, how much the policy's signal had
    changed, nan where unknown. total: per sample, the added-up distances (through the policy's polynomial, if it has
    one) that were held against `threshold`; empty and nan for policies without such a sum.
    empty, inherited, valid: tokens of all samples by how far their cached feature holds after the call; `found`: the
    same three as the call found them. cached_bytes: held after the call.
    flops: of the call, all samples; saved_flops: how much more it would have cost with every sample computed.
    """

    reused: tuple[bool, ...]
    distance: tuple[float, ...]
    threshold: float
    empty: int
    inherited: int
    valid: int
    cached_bytes: int
    found: tuple[int, int, int] = (0, 0, 0)
    total: tuple[float, ...] = ()
    flops: float = 0.0
    saved_flops: float = 0.0
    fresh: tuple[int, ...] = ()

    @property
    def partial(self) -> int:
        """How many samples were computed in part."""
        return sum(count > 0 for count in self.fresh)


@dataclass(frozen=True)
class StepRecord:
    """One scheduler step: from `sigma` to `sigma_next` (1 noise, 0 clean) with `tokens` image tokens per sample.

    `calls` counts the denoiser's calls, `samples` what they were made for: guidance that stacks its copies makes one
    call on twice the batch. `flops` and `seconds` are those of all calls and samples. `branches` has one record a call
    under a temporal policy; `saved_flops` is what its reuse spared. guided: whether classifier-free guidance was
    computed, for one sample at least; None where the setting does not ask. spared_flops: what its absence spared.
    forecast: for how many samples of calls the model was not asked at all, a forecast standing in. history_bytes: held
    by the predictions that forecasts and solvers read.
    """

    index: int
    stage: int
    sigma: float
    sigma_next: float
    tokens: int
    calls: int
    flops: float
    seconds: float
    branches: tuple[BranchRecord, ...] = ()
    saved_flops: float = 0.0
    samples: int = 0
    guided: bool | None = None
    spared_flops: float = 0.0
    forecast: int = 0
    history_bytes: int = 0

    @property
    def asked(self) -> int:
        """Of how many samples of calls a prediction was needed."""
        return self.samples + self.forecast

    @property
    def reused(self) -> int:
        """How many samples of how many calls passed over their blocks, or over the model."""
        return self.forecast + sum(sum(branch.reused) for branch in self.branches)

    @property
    def partial(self) -> int:
        """How many samples of how many calls were computed in part."""
        return sum(branch.partial for branch in self.branches)

    @property
    def computed(self) -> int:
        """How many samples of how many calls were computed in full."""
        return self.asked - self.reused - self.partial

    @property
    def recomputed_share(self) -> float:
        """Share of the tokens, over all samples and calls, that were computed while the others were passed over."""
        fresh = sum(sum(branch.fresh) for branch in self.branches)
        return fresh / max(self.asked * self.tokens, 1)

    @property
    def reused_share(self) -> float:
        """Share of the tokens, over all samples and calls, that were passed over."""
        return (self.reused + self.partial) / max(self.asked, 1) - self.recomputed_share

    @property
    def cached_bytes(self) -> int:
        """What all branches and the history of predictions held after this step."""
        return self.history_bytes + sum(branch.cached_bytes for branch in self.branches)
