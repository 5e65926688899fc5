"""`ralu-cache recommend`: name the best setting of a sweep."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from ralu_cache.sweep.outputs import load_summary
from ralu_cache.sweep.recommend import ALL, AVAILABLE, at_size, best_at, default_metric, fastest, save, usage
from ralu_cache.sweep.summary import Row, Summary
from ralu_cache.sweep.tables import quality_text, speed


def run(args: argparse.Namespace) -> None:
    """Prints the setting, its figures, how to use it, and what is better here but not this library's.

    Raises ValueError, naming the nearest, if nothing fits.
    """
    summary = at_size(load_summary(args.results), None if args.size is None else _size(args.size))
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


def _choose(summary: Summary, args: argparse.Namespace, families: Collection[str]) -> tuple[Row | None, Row | None]:
    if args.min_quality:
        return fastest(summary, dict(_bound(text) for text in args.min_quality), families)
    return best_at(summary, args.speedup, args.metric or default_metric(summary), families)


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
