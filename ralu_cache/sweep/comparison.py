"""Measured methods side by side: what one trial holds, its row of figures, and the Markdown table of them all."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ralu_cache.report.report import Report
from ralu_cache.report.steps import StepRecord
from ralu_cache.report.table import Table
from ralu_cache.report.text import readable_flops
from ralu_cache.report.videos import as_frames
from ralu_cache.sweep.methods import Method

Pictures = NDArray[np.float32]  # (B, Y, X, 3) in [0, 1], or videos (B, F, Y, X, 3)
Metric = Callable[[Pictures, Pictures], list[float]]

TITLES = ("method", "steps", "FLOPs", "fewer FLOPs", "seconds", "faster", "PSNR to full", "SSIM to full")
CACHED = ("faster than uncached", "PSNR to uncached")  # beside them, if a method caches


@dataclass
class Trial:
    """One method, what `accelerate` is given for it, and what was measured of it."""

    name: str
    steps: int
    flops: float
    method: Method = field(default_factory=Method)
    seconds: list[float] = field(default_factory=list)  # one per run, in the order of the interleaving
    pictures: dict[int, Pictures] = field(default_factory=dict)  # by seed
    reports: dict[int, Report] = field(default_factory=dict)  # by seed


def comparison_row(
    trial: Trial, full: Trial, metrics: Mapping[str, Metric], uncached: Trial | None = None
) -> dict[str, Any]:
    """One trial's figures; the speed-up is the median of the ratios within each round of the interleaving.

    uncached: the same plan without temporal caching, which a cached run is compared with as well.
    """
    ratios = _ratios(full, trial)
    row: dict[str, Any] = {
        "steps": trial.steps,
        "seconds": statistics.median(trial.seconds),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "flops": trial.flops,
        "flop_ratio": full.flops / trial.flops,
    }
    row |= _likeness(trial, full, metrics)
    if uncached is not None:
        likeness = _likeness(trial, uncached, metrics)
        row["uncached"] = uncached.name
        row["ratio_to_uncached"] = statistics.median(_ratios(uncached, trial))
        row["flop_ratio_to_uncached"] = uncached.flops / trial.flops
        row |= {f"{name}_to_uncached": likeness[name] for name in metrics}
        row |= {f"{name}_to_uncached_spread": likeness[f"{name}_spread"] for name in metrics}
    reports = list(trial.reports.values())
    if uncached is not None and reports:
        row["reused_share"] = _reused_share([step for report in reports for step in report.steps])
        row["peak_cached_bytes"] = max(report.peak_cached_bytes for report in reports)
    for report in reports[:1]:
        row["stages"] = report.to_dict()["stages"]
        row["notices"] = report.notices
    return row


def _reused_share(steps: Sequence[StepRecord]) -> float:
    """Mean, over all samples of all calls, of the share of their tokens that was passed over."""
    return sum(step.reused_share * step.samples for step in steps) / max(sum(step.samples for step in steps), 1)


def _ratios(base: Trial, trial: Trial) -> list[float]:
    """How many times faster than `base`, in each round."""
    return [before / mine for before, mine in zip(base.seconds, trial.seconds, strict=True)]


def _likeness(trial: Trial, base: Trial, metrics: Mapping[str, Metric]) -> dict[str, float | None]:
    """Each metric and its spread over the pictures, or frames, of all seeds; None where there is no such number."""
    row: dict[str, float | None] = {}
    for name, metric in metrics.items():
        values = [
            value
            for seed, shown in trial.pictures.items()
            for value in metric(as_frames(shown), as_frames(base.pictures[seed]))
        ]
        if trial is base or not all(map(math.isfinite, values)):  # equal pictures have no PSNR
            row[name] = row[f"{name}_spread"] = None
        else:
            row[name], row[f"{name}_spread"] = statistics.fmean(values), statistics.pstdev(values)
    return row


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The figures of a demo's report.json as a Markdown table, and below it how they were measured."""
    return f"{comparison_table(summary).markdown()}\n\n{caption(summary)}\n"


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """A line for each method; columns for what caching is worth if one of them caches."""
    cached = _caches(summary)
    rows = [_table_row(name, row, cached) for name, row in summary["methods"].items()]
    return Table((*TITLES, *CACHED) if cached else TITLES, rows)


def caption(summary: Mapping[str, Any]) -> str:
    hardware, size, frames = summary["hardware"], summary["size"], summary.get("frames")
    length = f", {frames} frames" if frames else ""
    text = (
        f"{summary['model']}, guided, {len(summary['prompts'])} prompts as one batch at {size}x{size} pixels{length}; "
        f"{hardware['name']}, {hardware['threads']} threads, torch {summary['versions']['torch']}. "
        f"Seconds: median of {summary['repeats'] * len(summary['seeds'])} interleaved runs of the whole call. "
        f"PSNR and SSIM: mean and standard deviation over the {'frames' if frames else 'pictures'}, "
        "to the full run of the same seed."
    )
    if _caches(summary):
        text += (
            " Steps in brackets: those computed, on average over pictures, guidance branches and tokens; the others"
            " reused what was cached. Uncached: the same spatial plan without temporal caching."
        )
    return text


def _caches(summary: Mapping[str, Any]) -> bool:
    return any("uncached" in row for row in summary["methods"].values())


def _table_row(name: str, row: Mapping[str, Any], cached: bool) -> list[str]:
    low, high = row["ratio_range"]
    share = row.get("reused_share", 0)
    cells = [
        name,
        str(row["steps"]) + (f" ({row['steps'] * (1 - share):.1f})" if share else ""),
        readable_flops(row["flops"]),
        f"{row['flop_ratio']:.2f}x",
        f"{row['seconds']:.2f}",
        f"{row['ratio']:.2f}x" + ("" if low == high else f" ({low:.2f} to {high:.2f})"),
        "" if row["psnr"] is None else f"{row['psnr']:.1f} ± {row['psnr_spread']:.1f} dB",
        "" if row["ssim"] is None else f"{row['ssim']:.3f} ± {row['ssim_spread']:.3f}",
    ]
    if cached:
        psnr = row.get("psnr_to_uncached")
        cells.append(f"{row['ratio_to_uncached']:.2f}x" if "uncached" in row else "")
        cells.append("" if psnr is None else f"{psnr:.1f} ± {row['psnr_to_uncached_spread']:.1f} dB")
    return cells


def describe_hardware(device: str) -> dict[str, Any]:
    """The processor that `device` stands for, and torch's threads."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {"device": device, "name": name, "threads": torch.get_num_threads(), "system": platform.system()}
