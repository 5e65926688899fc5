"""Measured methods side by side: one row each, as data and as a Markdown table."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ralu_cache.report import Report, readable_flops

Pictures = NDArray[np.float32]  # (B, Y, X, 3) in [0, 1]


@dataclass
class Trial:
    """One method and what was measured of it; `spatial` is None for plain sampling."""

    name: str
    steps: int
    flops: float
    spatial: str | None = None
    report: Report | None = None
    seconds: list[float] = field(default_factory=list)  # one per run, in the order of the interleaving
    pictures: dict[int, Pictures] = field(default_factory=dict)  # by seed


def _rowdef comparison_row(
    trial: Trial, full: Trial, psnr: Callable[..., list[float]], ssim: Callable[..., list[float]]
) -> dict[str, Any]:
    """One method's figures; the speed-up is the median of the ratios within each round."""
    ratios = [base / mine for base, mine in zip(full.seconds, trial.seconds, strict=True)]
    row: dict[str, Any] = {
        "steps": trial.steps,
        "seconds": statistics.median(trial.seconds),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "flops": trial.flops,
        "flop_ratio": full.flops / trial.flops,
        "psnr": None,
        "ssim": None,
    }
    if trial is not full:
        for name, metric in (("psnr", psnr), ("ssim", ssim)):
            values = [value for seed, shown in trial.pictures.items() for value in metric(shown, full.pictures[seed])]
            if all(map(math.isfinite, values)):  # equal pictures have no PSNR
                row[name], row[f"{name}_spread"] = statistics.fmean(values), statistics.pstdev(values)
    if trial.report is not None:
        row["stages"] = trial.report.to_dict()["stages"]
        row["notices"] = trial.report.notices
    return row


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The measured figures as a Markdown table, from what report.json holds."""
    lines = [
        "| method | steps | FLOPs | fewer FLOPs | seconds | faster | PSNR to full | SSIM to full |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in summary["methods"].items():
        low, high = row["ratio_range"]
        speed = "1" if name == "full" else f"{row['ratio']:.2f}x ({low:.2f} to {high:.2f})"
        likeness = [
            "" if row[key] is None else f"{row[key]:.{digits}f} ± {row[f'{key}_spread']:.{digits}f}{unit}"
            for key, digits, unit in (("psnr", 1, " dB"), ("ssim", 3, ""))
        ]
        cells = [
            name,
            str(row["steps"]),
            readable_flops(row["flops"]),
            f"{row['flop_ratio']:.2f}x",
            f"{row['seconds']:.2f}",
            speed,
            *likeness,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    hardware = summary["hardware"]
    lines += [
        "",
        f"{summary['model']}, {len(summary['prompts'])} prompts as one batch, {summary['size']}x{summary['size']} pixels, "
        f"guided; {hardware['name']}, {hardware['threads']} threads, torch {summary['versions']['torch']}. "
        f"Seconds: median of {summary['repeats'] * len(summary['seeds'])} interleaved runs of the whole call; "
        "PSNR and SSIM: mean and standard deviation over the pictures, against the full run of the same seed.",
    ]
    return "\n".join(lines) + "\n"


def hardware(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {"device": device, "name": name, "threads": torch.get_num_threads(), "system": platform.system()}


