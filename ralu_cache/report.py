"""What a run did: its steps, stages, regions and cost, as plain data that prints, saves and plots itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

StageKind = Literal["coarse", "mixed", "fine"]
RegionMask = NDArray[np.bool_]


@dataclass(frozen=True)
class BranchRecord:
    """What a temporal policy did in one denoiser call (one guidance branch) of one step.

    reused: per sample, True if its blocks were passed over. distance: per sample, how much the policy's signal had
    changed, nan where unknown. threshold: what the added-up distance was held against, nan if there is none.
    empty, inherited, valid: tokens of all samples by how far their cached feature holds after the call.
    """

    reused: tuple[bool, ...]
    distance: tuple[float, ...]
    threshold: float
    empty: int
    inherited: int
    valid: int
    cached_bytes: int


@dataclass(frozen=True)
class StepRecord:
    """One scheduler step: from `sigma` to `sigma_next` (1 noise, 0 clean) with `tokens` image tokens per sample.

    `calls` counts the denoiser's calls, `flops` and `seconds` are those of all calls and samples. `branches` has one
    record a call under a temporal policy.
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

    @property
    def reused(self) -> int:
        """How many samples of how many calls passed over their blocks."""
        return sum(sum(branch.reused) for branch in self.branches)


@dataclass(frozen=True)
class StageRecord:
    """The steps of one stage, added up; `computed` and `reused` count samples of calls."""

    kind: StageKind
    steps: int
    sigma_start: float
    sigma_end: float
    tokens: int
    calls: int
    flops: float
    seconds: float
    computed: int = 0
    reused: int = 0


@dataclass
class Report:
    """The record of one pipeline call.

    size: the full-resolution token grid (rows, columns); known, like `batch`, from the first step on.
    regions: one (B, Y, X) mask per mixed stage, True where the coarse grid was refined.
    baseline_steps, baseline_flops: the plain full-resolution run that the cost is compared with.
    completed: False if the call was interrupted.
    """

    pipeline: str
    spatial: str
    temporal: str
    size: tuple[int, int] = (0, 0)
    batch: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    regions: list[RegionMask] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    baseline_steps: int = 0
    baseline_flops: float = 0.0
    completed: bool = False

    @property
    def stages(self) -> list[StageRecord]:
        """The stages in the order they ran."""
        return [self._stage(list(steps)) for _, steps in groupby(self.steps, key=attrgetter("stage"))]

    @property
    def flops(self) -> float:
        """Floating-point operations of the transformer, all steps and samples."""
        return sum(step.flops for step in self.steps)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all steps (without text encoding and decoding)."""
        return sum(step.seconds for step in self.steps)

    @property
    def flop_ratio(self) -> float:
        """How many times fewer FLOPs than the plain run; 1.0 while nothing is recorded."""
        return self.baseline_flops / self.flops if self.flops else 1.0

    def _stage(self, steps: Sequence[StepRecord]) -> StageRecord:
        first, last = steps[0], steps[-1]
        return StageRecord(
            kind=stage_kind(first.tokens, self.size),
            steps=len(steps),
            sigma_start=first.sigma,
            sigma_end=last.sigma_next,
            tokens=first.tokens,
            calls=sum(step.calls for step in steps),
            flops=sum(step.flops for step in steps),
            seconds=sum(step.seconds for step in steps),
            computed=sum(step.calls * self.batch - step.reused for step in steps),
            reused=sum(step.reused for step in steps),
        )

    def __str__(self) -> str:
        rows, columns = self.size
        lines = [
            f"{self.pipeline}, batch {self.batch}, {rows}x{columns} tokens",
            f"spatial {self.spatial}",
            f"temporal {self.temporal}",
            f"{'stage':<8}{'steps':>6}{'sigma':>17}{'tokens':>8}{'calls':>7}{'FLOPs':>11}{'seconds':>9}",
        ]
        for stage in self.stages:
            sigmas = f"{stage.sigma_start:.3f} -> {stage.sigma_end:.3f}"
            head = f"{stage.kind:<8}{stage.steps:>6}{sigmas:>17}{stage.tokens:>8}"
            lines.append(head + _cost(stage.calls, stage.flops, stage.seconds))
        calls = sum(step.calls for step in self.steps)
        lines.append(f"{'total':<8}{len(self.steps):>6}{'':>25}" + _cost(calls, self.flops, self.seconds))
        if self.baseline_steps:
            lines.append(f"{self.flop_ratio:.2f}x fewer FLOPs than {self.baseline_steps} full-resolution steps")
        lines += [f"refined in mixed stage {n}: {mask.mean():.0%}" for n, mask in enumerate(self.regions, 1)]
        if not self.completed:
            lines.append("the run did not finish")
        return "\n".join(lines + [f"notice: {notice}" for notice in self.notices])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; a region mask becomes one string of 0 and 1 per row."""
        data = asdict(self)
        data["regions"] = [[_mask_rows(sample) for sample in mask] for mask in self.regions]
        data["stages"] = [asdict(stage) for stage in self.stages]
        return data | {"flops": self.flops, "seconds": self.seconds, "flop_ratio": self.flop_ratio}

    def save(self, path: str | PathLike[str]) -> None:
        """Writes `to_dict()` as JSON; makes the folder."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def plot(self, path: str | PathLike[str], image: Any = None) -> None:
        """Draws sigma and tokens over the steps and, with `image`, the refined regions over the finished pictures.

        image: a PIL image, a (Y, X, 3) array, or a list of them in the order of the batch.
        Raises ImportError if matplotlib is missing.
        """
        from ralu_cache import plots

        plots.save_report(self, path, image)


def stage_kind(tokens: int, size: tuple[int, int]) -> StageKind:
    """Which kind of stage runs on `tokens` tokens of a full grid of `size` (rows, columns)."""
    full = size[0] * size[1]
    if tokens == full:
        return "fine"
    return "coarse" if 4 * tokens == full else "mixed"


def readable_flops(flops: float) -> str:
    """1.5e12 -> '1.50 T'."""
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= scale:
            return f"{flops / scale:.2f} {unit}"
    return f"{flops / 1e6:.2f} M"


def _cost(calls: int, flops: float, seconds: float) -> str:
    return f"{calls:>7}{readable_flops(flops):>11}{seconds:>9.2f}"


def _mask_rows(mask: RegionMask) -> list[str]:
    return ["".join("1" if cell else "0" for cell in row) for row in mask]
