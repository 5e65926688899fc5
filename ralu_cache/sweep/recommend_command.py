"""`ralu-cache recommend`: name the best setting of a sweep."""

from __future__ import annotations

import argparse

from ralu_cache.sweep.outputs import load_summary
from ralu_cache.sweep.recommend import best_at, default_metric, fastest, save, usage
from ralu_cache.sweep.tables import quality_text, speed


def run(args: argparse.Namespace) -> None:
    """Prints the setting, its figures and how to use it. Raises ValueError, naming the nearest, if nothing fits."""
    summary = load_summary(args.results)
    if args.min_quality:
        row, nearest = fastest(summary, dict(_bound(text) for text in args.min_quality))
    else:
        row, nearest = best_at(summary, args.speedup, args.metric or default_metric(summary))
    shown = row or nearest
    if shown is None:
        raise ValueError(f"{args.results} holds no setting that was both timed and judged")
    metrics = summary.header.metrics
    figures = [f"{metrics[name].label} {quality_text(value, metrics[name])}" for name, value in shown.quality.items()]
    text = f"{summary.label(shown)}: {speed(shown)} faster; {', '.join(figures)}"
    if row is None:
        raise ValueError(f"nothing measured fits; nearest is {text}")
    print(f"{text}\n\n{usage(row.setting)}")
    if args.save:
        header, size = summary.header, f"{row.setting.width}x{row.setting.height} px"
        save(args.save, row, f"{header.model}, {size}, {header.full_steps} steps, {header.hardware}")


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--min-quality takes METRIC=VALUE such as psnr=30, got {text!r}") from None
