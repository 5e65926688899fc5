"""`ralu-cache recommend`: which setting of a sweep to use, the fastest that keeps a quality, or the best at a speed."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ralu_cache.sweep.groups import OURS
from ralu_cache.sweep.methods import Method, parse_method
from ralu_cache.sweep.records import Setting
from ralu_cache.sweep.summary import Row, Summary, load_summary, steps_asked
from ralu_cache.sweep.tables import quality_text, speed

AVAILABLE = ("full", "steps", *OURS)  # to be had by `accelerate`
ALL = (*AVAILABLE, "peer")


@dataclass(frozen=True)
class Entry:
    """A measured setting: `accelerate`'s arguments, how many times faster they are, and where that was measured.

    steps: the `num_inference_steps` of the call; a spatial plan brings its own.
    """

    speedup: float
    spatial: str | None
    temporal: str | None
    measured: str
    steps: int
    guidance: str | None = None
    solver: str | None = None


def run(args: argparse.Namespace) -> None:
    """Prints the setting, its figures, how to use it, and what is better here but not this library's.

    Raises ValueError, naming the nearest, if nothing fits.
    """
    summary = load_summary(args.results).at_size(None if args.size is None else _size(args.size))
    row, nearest = _choose(summary, args, AVAILABLE)
    best, _ = _choose(summary, args, ALL)
    shown = row or nearest
    if shown is None:
        raise ValueError(f"{args.results} holds no setting that was both timed and judged")
    note = ""
    if best is not None and best is not row:
        better = "fits" if row is None else "is faster here" if args.min_quality else "is better here"
        note = f"note: {summary.label(best)}, which is not this library's, {better}: {_figures(summary, best)}"
    about = f"{summary.label(shown)}: {_figures(summary, shown)}"
    if row is None:
        raise ValueError(f"nothing measured fits; nearest is {about}{f'; {note}' if note else ''}")
    print("\n\n".join(part for part in (about, usage(row.setting), note) if part))
    if args.save:
        header, size = summary.header, f"{row.setting.width}x{row.setting.height} px"
        save(args.save, row, f"{header.model}, {size}, {header.full_steps} steps, {header.hardware}")


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


def _choose(summary: Summary, args: argparse.Namespace, families: Collection[str]) -> tuple[Row | None, Row | None]:
    if args.min_quality:
        return fastest(summary, dict(_bound(text) for text in args.min_quality), families)
    return best_at(summary, args.speedup, args.metric or summary.main_metric, families)


def _figures(summary: Summary, row: Row) -> str:
    metrics = summary.header.metrics
    quality = [f"{metrics[name].label} {quality_text(value, metrics[name])}" for name, value in row.quality.items()]
    return f"{speed(row)} faster; {', '.join(quality)}"


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--min-quality takes METRIC=VALUE such as psnr=30, got {text!r}") from None


def _size(text: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT", as the tables write it."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size takes WIDTHxHEIGHT in pixels such as 1024x768, got {text!r}")
    return int(height), int(width)
