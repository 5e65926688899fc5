"""What a run did: its steps, stages, regions and cost, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, zip_longest
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ralu_cache.report.steps import StepRecord

StageKind = Literal["coarse", "mixed", "fine"]
RegionMask = NDArray[np.bool_]
SUMS = ("calls", "flops", "seconds", "computed", "reused", "partial", "saved_flops")  # of a stage, over its steps


@dataclass(frozen=True)
class BranchTotals:
    """One branch's calls in a stage, added up; `computed`, `partial` and `reused` count samples."""

    computed: int
    reused: int
    flops: float
    saved_flops: float
    partial: int = 0


@dataclass(frozen=True)
class StageRecord:
    """The steps of one stage, added up; `computed`, `partial` and `reused` count samples of calls."""

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
    saved_flops: float = 0.0
    branches: tuple[BranchTotals, ...] = ()
    partial: int = 0


class Noted:
    """The steps of a report, noted while the run goes on and made records when somebody reads them.

    A step costs the run a few lines of work on the host; its record is made later, or never.
    """

    def __get__(self, report: RunRecord | None, owner: type[RunRecord]) -> list[StepRecord]:
        if report is None:
            return ()  # type: ignore[return-value]  # by default; a list would be refused
        held: list[StepRecord] = vars(report)["_held"]
        notes: list[Callable[[], StepRecord]] = vars(report)["_notes"]
        while notes:
            held.append(notes.pop(0)())
        return held

    def __set__(self, report: RunRecord, steps: list[StepRecord]) -> None:
        vars(report).update(_held=list(steps), _notes=[])


@dataclass
class RunRecord:
    """The record of one pipeline call.

    size: the full-resolution token grid (rows, columns), of a video with the rows of all latent frames; known, like
        `batch`, from the first step on.
    regions: one (B, Y, X) mask per mixed stage, True where the coarse grid was refined.
    baseline_steps, baseline_flops: the plain full-resolution run that the cost is compared with.
    completed: False if the call was interrupted.
    solver: its name; "euler" is the stock step, of whatever scheduler.
    scheduler: the class of the pipeline's own.
    promised: so many times less the call was said to cost (`speedup=`); None where nothing was said.

    Where nothing is known of the model, its tokens are none and its FLOPs nan, and `calls` counts computed steps.
    """

    pipeline: str
    spatial: str
    temporal: str
    size: tuple[int, int] = (0, 0)
    batch: int = 0
    steps: list[StepRecord] = Noted()  # type: ignore[assignment]
    regions: list[RegionMask] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    baseline_steps: int = 0
    baseline_flops: float = 0.0
    completed: bool = False
    solver: str = "euler"
    scheduler: str = ""
    promised: float | None = None

    def note(self, step: Callable[[], StepRecord]) -> None:
        """One more step was made; its record is asked for when `steps` is read."""
        vars(self)["_notes"].append(step)

    @property
    def latest(self) -> StepRecord:
        """The last step whose record was made."""
        held: list[StepRecord] = vars(self)["_held"]
        return held[-1]

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

    @property
    def counted(self) -> bool:
        """True if it is known what the model costs."""
        return not math.isnan(self.flops)

    @property
    def called_steps(self) -> int:
        """At how many steps the model was called."""
        return sum(step.calls > 0 for step in self.steps)

    @property
    def caches(self) -> bool:
        """True if a temporal policy was at work."""
        return any(step.branches or step.forecast for step in self.steps)

    @property
    def sparse(self) -> bool:
        """True if in some calls a part of the tokens was computed."""
        return any(step.partial for step in self.steps)

    @property
    def temporal_saved_flops(self) -> float:
        """FLOPs that reuse spared: those of the same plan uncached, less `flops`."""
        return sum(step.saved_flops for step in self.steps)

    @property
    def guidance_saved_flops(self) -> float:
        """FLOPs that steps without guidance spared."""
        return sum(step.spared_flops for step in self.steps)

    @property
    def guided_steps(self) -> int | None:
        """How many steps were guided; None where the setting does not ask, or there was nothing to guide."""
        known = [step.guided for step in self.steps if step.guided is not None]
        return sum(known) if known else None

    @property
    def spatial_saved_flops(self) -> float:
        """FLOPs that fewer tokens, and the plan's own number of steps, spared: the plain run's, less the plan's."""
        return self.baseline_flops - self.flops - self.temporal_saved_flops - self.guidance_saved_flops

    @property
    def peak_cached_bytes(self) -> int:
        """The most that all branches and the history of predictions held together after a step."""
        return max((step.cached_bytes for step in self.steps), default=0)

    def _stage(self, steps: Sequence[StepRecord]) -> StageRecord:
        first, last = steps[0], steps[-1]
        return StageRecord(
            kind=stage_kind(first.tokens, self.size),
            steps=len(steps),
            sigma_start=first.sigma,
            sigma_end=last.sigma_next,
            tokens=first.tokens,
            branches=_branch_totals(steps),
            **{name: sum(getattr(step, name) for step in steps) for name in SUMS},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: a region mask becomes one string of 0 and 1 per row, nan and inf become None."""
        data = asdict(self)
        data["regions"] = [[_mask_rows(sample) for sample in mask] for mask in self.regions]
        data["stages"] = [asdict(stage) for stage in self.stages]
        totals = (
            "flops", "seconds", "flop_ratio", "spatial_saved_flops", "temporal_saved_flops", "guidance_saved_flops",
            "peak_cached_bytes",
        )  # fmt: skip
        return finite(data | {name: getattr(self, name) for name in totals})


def stage_kind(tokens: int, size: tuple[int, int]) -> StageKind:
    """Which kind of stage runs on `tokens` tokens of a full grid of `size` (rows, columns)."""
    full = size[0] * size[1]
    if tokens == full:
        return "fine"
    return "coarse" if 4 * tokens == full else "mixed"


def finite(data: Any) -> Any:
    """The same data with None for every nan and inf, which JSON does not know; tuples become lists."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _branch_totals(steps: Sequence[StepRecord]) -> tuple[BranchTotals, ...]:
    """The branches of a stage's steps, each added up; a step may have called fewer than another."""
    groups = zip_longest(*(step.branches for step in steps))
    present = [[branch for branch in group if branch is not None] for group in groups]
    return tuple(
        BranchTotals(
            computed=sum(len(branch.reused) - sum(branch.reused) - branch.partial for branch in group),
            partial=sum(branch.partial for branch in group),
            reused=sum(sum(branch.reused) for branch in group),
            flops=sum(branch.flops for branch in group),
            saved_flops=sum(branch.saved_flops for branch in group),
        )
        for group in present
    )


def _mask_rows(mask: RegionMask) -> list[str]:
    return ["".join("1" if cell else "0" for cell in row) for row in mask]
