"""A report as text: a table of stages and branches, what each part saved, what was refined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ralu_cache.report.record import BranchTotals, Report, StageRecord

NUMBERS = 46  # columns left of what a branch's line shares with its stage's


def describe(report: Report) -> str:
    """The whole text."""
    rows, columns = report.size
    lines = [
        f"{report.pipeline}, batch {report.batch}, {rows}x{columns} tokens",
        f"spatial {report.spatial}",
        f"temporal {report.temporal}",
        *([] if report.solver == "euler" else [f"solver {report.solver}"]),
        *_table(report),
    ]
    counted = not math.isnan(report.flops)
    if report.baseline_steps and counted:
        lines.append(f"{report.flop_ratio:.2f}x fewer FLOPs than {report.baseline_steps} full-resolution steps")
    if report.guided_steps is not None:
        spared = readable_flops(report.guidance_saved_flops)
        lines.append(f"guided {report.guided_steps} of {len(report.steps)} steps: {spared} FLOPs spared")
    if report.caches:
        lines += _savings(report) if counted else []
    if report.peak_cached_bytes:
        lines.append(f"cache: at most {readable_bytes(report.peak_cached_bytes)}")
    lines += [f"refined in mixed stage {n}: {mask.mean():.0%}" for n, mask in enumerate(report.regions, 1)]
    if not report.completed:
        lines.append("the run did not finish")
    return "\n".join(lines + [f"notice: {notice}" for notice in report.notices])


def _table(report: Report) -> list[str]:
    """A line a stage, below it one for each branch if there are several, and a last one for the whole run."""
    stages = report.stages
    kinds = _kinds(report)
    titles = "".join(f"{kind:>{width}}" for kind, width in kinds.items())
    lines = [f"{'stage':<8}{'steps':>6}{'sigma':>17}{'tokens':>8}{'calls':>7}{titles}{'FLOPs':>11}{'seconds':>9}"]
    for stage in stages:
        sigmas = f"{stage.sigma_start:.3f} -> {stage.sigma_end:.3f}"
        head = f"{stage.kind:<8}{stage.steps:>6}{sigmas:>17}{stage.tokens:>8}{stage.calls:>7}"
        lines.append(head + _steps([stage], stage.steps, kinds) + _cost(stage.flops, stage.seconds))
        if len(stage.branches) > 1:
            for number, branch in enumerate(stage.branches, 1):
                counts = _steps([branch], stage.steps, kinds)
                lines.append(f"  branch {number}".ljust(NUMBERS) + counts + _cost(branch.flops))
    total = f"{'total':<8}{len(report.steps):>6}{'':>25}{sum(stage.calls for stage in stages):>7}"
    return [*lines, total + _steps(stages, len(report.steps), kinds) + _cost(report.flops, report.seconds)]


def _kinds(report: Report) -> dict[str, int]:
    """What the samples of calls are counted by, and the columns' widths."""
    if not report.caches:
        return {}
    return {"computed": 10} | ({"partial": 9} if report.sparse else {}) | {"reused": 8}


def _steps(parts: Sequence[StageRecord | BranchTotals], steps: int, kinds: Mapping[str, int]) -> str:
    """Samples of calls as steps: means over the samples and branches."""
    counts = {kind: sum(getattr(part, kind) for part in parts) for kind in kinds}
    share = steps / max(sum(counts.values()), 1)
    return "".join(f"{_tenths(counts[kind] * share):>{width}}" for kind, width in kinds.items())


def _cost(flops: float, seconds: float | None = None) -> str:
    return f"{readable_flops(flops):>11}" + ("" if seconds is None else f"{seconds:>9.2f}")


def _savings(report: Report) -> list[str]:
    """Which part spared what, and how many times fewer that is; of a run cut short only what it reused is known."""
    spatial, temporal = report.spatial_saved_flops, report.temporal_saved_flops
    uncached = report.flops + temporal
    parts = [f"{readable_flops(temporal)} by temporal ({uncached / report.flops:.2f}x)"]
    uncached += report.guidance_saved_flops
    if report.completed and report.spatial != "none":
        parts.insert(0, f"{readable_flops(spatial)} by spatial ({report.baseline_flops / uncached:.2f}x)")
    return [f"FLOPs saved: {', '.join(parts)}"]


def readable_flops(flops: float) -> str:
    """1.5e12 -> '1.50 T'; 'unknown' for nan."""
    if math.isnan(flops):
        return "unknown"
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= scale:
            return f"{flops / scale:.2f} {unit}"
    return f"{flops / 1e6:.2f} M"


def readable_bytes(size: float) -> str:
    """2.5 * 2**20 -> '2.5 MiB'."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def _tenths(value: float) -> str:
    """3.0 -> '3', 3.25 -> '3.2'."""
    return f"{value:.1f}".removesuffix(".0")
