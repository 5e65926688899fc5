"""A report as text: a table of stages and branches, what each part saved, what was refined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ralu_cache.report.record import BranchTotals, RunRecord, StageRecord
from ralu_cache.report.table import Table


def describe(report: RunRecord) -> str:
    """The whole text."""
    rows, columns = report.size
    tokens = f", {rows}x{columns} tokens" if rows else ""
    lines = [
        f"{report.pipeline}, batch {report.batch}{tokens}",
        *([f"scheduler {report.scheduler}"] if report.scheduler else []),
        f"spatial {report.spatial}",
        f"temporal {report.temporal}",
        *([] if report.solver == "euler" else [f"solver {report.solver}"]),
        _table(report).plain(),
    ]
    if report.baseline_steps:
        lines.append(gain(report))
    if report.promised is not None and report.completed:
        counted = f"{report.flop_ratio:.2f}x, by FLOPs" if report.counted else "unknown: its FLOPs are not counted"
        lines.append(f"promised {report.promised:.3g}x, delivered {counted}")
    if report.guided_steps is not None:
        spared = readable_flops(report.guidance_saved_flops)
        lines.append(f"guided {report.guided_steps} of {len(report.steps)} steps: {spared} FLOPs spared")
    if report.caches:
        lines += _savings(report) if report.counted else []
    if report.peak_cached_bytes:
        lines.append(f"cache: at most {readable_bytes(report.peak_cached_bytes)}")
    lines += [f"refined in mixed stage {n}: {mask.mean():.0%}" for n, mask in enumerate(report.regions, 1)]
    if not report.completed:
        lines.append("the run did not finish")
    return "\n".join(lines + [f"notice: {notice}" for notice in report.notices])


def gain(report: RunRecord) -> str:
    """What a run spared, in FLOPs, or where those are not known in steps at which the model was called."""
    if report.counted:
        return f"{report.flop_ratio:.2f}x fewer FLOPs than {report.baseline_steps} full-resolution steps"
    return f"the model was called at {report.called_steps} of {report.baseline_steps} steps"


def _table(report: RunRecord) -> Table:
    """A line a stage, below it one for each branch if there are several, and a last one for the whole run."""
    kinds: list[str] = []  # what the samples of calls are counted by
    if report.caches:
        kinds = ["computed", *(["partial"] if report.sparse else []), "reused"]
    rows, stages = [], report.stages
    for stage in stages:
        sigmas = f"{stage.sigma_start:.3f} -> {stage.sigma_end:.3f}"
        head = (stage.kind, str(stage.steps), sigmas, str(stage.tokens or ""), str(stage.calls))
        rows.append([*head, *_steps([stage], stage.steps, kinds), readable_flops(stage.flops), f"{stage.seconds:.2f}"])
        for number, branch in enumerate(stage.branches if len(stage.branches) > 1 else (), 1):
            counts = _steps([branch], stage.steps, kinds)
            rows.append([f"  branch {number}", *[""] * (len(head) - 1), *counts, readable_flops(branch.flops), ""])
    total = ("total", str(len(report.steps)), "", "", str(sum(stage.calls for stage in stages)))
    counts = _steps(stages, len(report.steps), kinds)
    rows.append([*total, *counts, readable_flops(report.flops), f"{report.seconds:.2f}"])
    return Table(("stage", "steps", "sigma", "tokens", "calls", *kinds, "FLOPs", "seconds"), rows)


def _steps(parts: Sequence[StageRecord | BranchTotals], steps: int, kinds: Sequence[str]) -> list[str]:
    """Samples of calls as steps: means over the samples and branches; 3.0 -> "3", 3.25 -> "3.2"."""
    counts = [sum(getattr(part, kind) for part in parts) for kind in kinds]
    share = steps / max(sum(counts), 1)
    return [f"{count * share:.1f}".removesuffix(".0") for count in counts]


def _savings(report: RunRecord) -> list[str]:
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
    return "unknown" if math.isnan(flops) else _scaled(flops, 2, {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6})


def readable_bytes(size: float) -> str:
    """2.5 * 2**20 -> '2.5 MiB'."""
    return _scaled(size, 1, {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10})


def _scaled(value: float, digits: int, units: Mapping[str, float]) -> str:
    """In the largest unit that it holds, else in the smallest; the units from large to small."""
    unit, scale = next(((unit, scale) for unit, scale in units.items() if value >= scale), list(units.items())[-1])
    return f"{value / scale:.{digits}f} {unit}"
