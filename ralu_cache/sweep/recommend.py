"""Which setting of a sweep to use: the fastest that keeps a quality, or the best at a speed."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ralu_cache.sweep.methods import Method, parse_method
from ralu_cache.sweep.recommended import Entry
from ralu_cache.sweep.records import Setting
from ralu_cache.sweep.summary import Row, Summary, steps_asked

AVAILABLE = ("full", "steps", "spatial", "temporal", "guidance", "solver", "combined")  # to be had by `accelerate`
ALL = (*AVAILABLE, "peer")


def default_metric(summary: Summary) -> str:
    """Attribute accuracy if it was measured, else PSNR, else the first metric. Raises ValueError without any."""
    names = list(summary.header.metrics)
    if not names:
        raise ValueError("the results hold no quality metric")
    return next((name for name in names if "attribute" in name), "psnr" if "psnr" in names else names[0])


def at_size(summary: Summary, size: tuple[int, int] | None) -> Summary:
    """The rows of one (height, width) alone; None if there is only one.

    Raises ValueError, naming the sizes, for a size that was not measured, and for none where several were.
    """
    measured = ", ".join(f"{width}x{height}" for height, width in summary.sizes)
    if size is None and len(summary.sizes) > 1:
        raise ValueError(f"the results hold several sizes, choose one with --size: {measured}")
    if size is not None and size not in summary.sizes:
        raise ValueError(f"nothing was measured at {size[1]}x{size[0]}; measured: {measured}")
    rows = (row for row in summary.rows if size in (None, row.setting.size))
    return replace(summary, rows=tuple(rows))


def fastest(
    summary: Summary, minimum: Mapping[str, float], families: Collection[str] = AVAILABLE
) -> tuple[Row | None, Row | None]:
    """(the fastest row that keeps every given quality or None, else the row that comes nearest).

    For a metric of which less is better, the value is a maximum. Nearest: the smallest sum of relative shortfalls.
    Raises ValueError for a metric that was not measured.
    """
    for name in minimum:
        _check_metric(summary, name)

    def short(row: Row) -> float:
        gaps = []
        for name, bound in minimum.items():
            gap = summary.sign(name) * bound - summary.score(row, name)
            gaps.append(max(gap, 0) / max(abs(bound), 1e-9))
        return sum(gaps)

    rows = [row for row in _candidates(summary, families) if all(name in row.quality for name in minimum)]
    fitting = [row for row in rows if short(row) == 0]
    if fitting:
        return max(fitting, key=lambda row: row.speedup), None
    return None, min(rows, key=short, default=None)


def best_at(
    summary: Summary, speedup: float, metric: str, families: Collection[str] = AVAILABLE
) -> tuple[Row | None, Row | None]:
    """(the best row in `metric` at this speed-up or more or None, else the fastest row); of equals the faster one."""
    _check_metric(summary, metric)
    rows = [row for row in _candidates(summary, families) if metric in row.quality]
    fitting = [row for row in rows if row.speedup >= speedup]
    if fitting:
        return max(fitting, key=lambda row: (summary.score(row, metric), row.speedup)), None
    return None, max(rows, key=lambda row: row.speedup, default=None)


def usage(setting: Setting) -> str:
    """The lines that use a setting."""
    call = f"pipe(prompt, num_inference_steps={steps_asked(setting)}, height={setting.height}, width={setting.width})"
    arguments = "".join(f', {name}="{value}"' for name, value in _arguments(setting).items() if value is not None)
    return f"accelerate(pipe{arguments})\n{call}" if arguments else call


def save(path: Path, row: Row, measured: str) -> None:
    """Adds the row to a file of shipped recommendations, in place of an older entry of the same setting.

    Raises ValueError for plain sampling, which is no acceleration.
    """
    arguments = _arguments(row.setting)
    if not any(arguments.values()):
        raise ValueError(f"{row.setting.method} is plain sampling with other steps; only accelerations can be saved")
    entries = json.loads(path.read_text()) if path.exists() else []
    steps = steps_asked(row.setting)
    key = {**arguments, "steps": steps}
    entries = [entry for entry in entries if any(entry.get(name) != value for name, value in key.items())]
    entry = Entry(round(row.speedup, 2), measured=measured, steps=steps, **arguments)
    entries = sorted([*entries, asdict(entry)], key=lambda each: each["speedup"])
    path.write_text(json.dumps(entries, indent=1) + "\n")


def _arguments(setting: Setting) -> dict[str, str | None]:
    method = Method() if setting.method.startswith("steps:") else parse_method(setting.method)
    return asdict(method)


def _candidates(summary: Summary, families: Collection[str]) -> list[Row]:
    return [row for row in summary.rows if row.comparable and row.family in families and not math.isnan(row.speedup)]


def _check_metric(summary: Summary, name: str) -> None:
    if name not in summary.header.metrics:
        raise ValueError(f"unknown metric {name!r}; measured: {', '.join(summary.header.metrics)}")
