"""What the composition study found: a table for each question, and the methods that forget against those that do not.

`benchmarks.composition` writes both; nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from ralu_cache.report.table import Table
from ralu_cache.sweep.summary import Row, Summary

UNCACHED = "ralu-4x"
LIKENESS = {"psnr_uncached": "the uncached plan", "psnr": "the full run"}
RESET, TREND = "transition=reset", "transition=trend"


def questions_text(summary: Summary, questions: Mapping[str, Sequence[str]], guidance: float) -> str:
    """All tables. FLOPs are told relative to the uncached "4x" plan."""
    rows = {row.setting.method: row for row in summary.rows}
    guided = "unguided" if guidance == 1 else f"guided ({guidance:g})"
    lines = [
        "# Composition study: the tables", "",
        f"{len(summary.pairs)} pictures each, {guided}, 128x128 pixels, {summary.header.hardware}. Made by "
        "`python -m benchmarks.composition`; ± is the standard error over the pictures.", "",
        'FLOPs: so many times fewer than the uncached "4x" plan.',
    ]  # fmt: skip
    titles = ("method", "FLOPs", "PSNR to uncached plan", "SSIM to it", "PSNR to full run", "attributes")
    for question, methods in questions.items():
        cells = [_cells(rows[method], rows[UNCACHED]) for method in methods if method in rows]
        lines += ["", f"## {question}", "", Table(titles, cells).markdown()]
    return "\n".join([*lines, *_equal_fidelity(summary, rows[UNCACHED])]) + "\n"


def front(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """(dB, FLOP ratio) of the rows that no other passes in both, the nearest first; those without the metric left out.

    An uncached plan is as near as can be to itself, so it has no place in that metric.
    """
    points = [(row.quality[metric].mean, row.flop_ratio) for row in rows if metric in row.quality]
    found: list[tuple[float, float]] = []
    for likeness, ratio in sorted(points, reverse=True):
        if not found or ratio > found[-1][1]:
            found.append((likeness, ratio))
    return found


def ratio_at(points: Sequence[tuple[float, float]], likeness: float) -> float:
    """The FLOP ratio at which a front is as near as `likeness`, between its points on a line in dB and log FLOPs.

    nan outside of the front: beyond its nearest or below its farthest point.
    """
    for (above, slow), (below, fast) in pairwise(points):
        if below <= likeness <= above:
            share = (above - likeness) / (above - below)
            return math.exp(math.log(slow) + share * (math.log(fast) - math.log(slow)))
    return math.nan


def forgetting(summary: Summary) -> list[Row]:
    """What everybody can do: plans without caching, and caching that forgets at transitions."""
    return [row for row in summary.rows if _ours(row) and (RESET in row.setting.method or _plain(row))]


def continuing(summary: Summary) -> list[Row]:
    return [row for row in summary.rows if _ours(row) and TREND in row.setting.method]


def save_fronts(summary: Summary, path: Path) -> None:
    """PSNR over FLOPs, to the uncached plan and to the full run: what forgets, and what goes on along trends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, (metric, target) in zip(panels, LIKENESS.items(), strict=True):
        for label, rows, colour in (
            ("forgets at transitions", forgetting(summary), "#d55e00"),
            ("goes on along its trend", continuing(summary), "#009e73"),
        ):
            measured = [row for row in rows if metric in row.quality and row.quality[metric].mean < 99]
            axes.scatter(
                [row.flop_ratio for row in measured], [row.quality[metric].mean for row in measured],
                s=18, color=colour, alpha=0.5,
            )  # fmt: skip
            line = front(measured, metric)
            axes.plot([ratio for _, ratio in line], [likeness for likeness, _ in line], color=colour, label=label)
        axes.set(xlabel="times fewer FLOPs than the full run", ylabel=f"PSNR to {target}, dB")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
    figure.suptitle(f"RALU with caching, {len(summary.pairs)} pictures")
    figure.savefig(path, dpi=120)


def _equal_fidelity(summary: Summary, uncached: Row) -> list[str]:
    lines = [
        "", "## As near as what forgets, and how much cheaper", "",
        "Against the front of all methods that forget at transitions (plans without caching among them), interpolated "
        "in dB and log FLOPs; - where that front does not reach.", "",
    ]  # fmt: skip
    rows = []
    fronts = {metric: front(forgetting(summary), metric) for metric in LIKENESS}
    for row in continuing(summary):
        gains = []
        for metric, points in fronts.items():
            quality = row.quality.get(metric)
            gain = math.nan if quality is None else row.flop_ratio / ratio_at(points, quality.mean)
            gains.append("-" if math.isnan(gain) else f"{gain:.2f}x")
        rows.append([f"`{row.setting.method}`", f"{row.flop_ratio / uncached.flop_ratio:.2f}x", *gains])
    titles = ("method", "FLOPs", *(f"times cheaper, as near to {target}" for target in LIKENESS.values()))
    return [*lines, Table(titles, rows).markdown()]


def _ours(row: Row) -> bool:
    """With rewound noise, which all methods that are compared have in common."""
    return not row.setting.method.startswith("fresh-noise:")


def _plain(row: Row) -> bool:
    method = row.setting.method
    return method.startswith("ralu-") and "+" not in method


def _cells(row: Row, uncached: Row) -> tuple[str, ...]:
    def figure(name: str, unit: str = "", digits: int = 1) -> str:
        quality = row.quality.get(name)
        return "-" if quality is None else f"{quality.mean:.{digits}f} ± {quality.error:.{digits}f}{unit}"

    return (
        f"`{row.setting.method}`", f"{row.flop_ratio / uncached.flop_ratio:.2f}x", figure("psnr_uncached", " dB"),
        figure("ssim_uncached", digits=3), figure("psnr", " dB"), figure("attributes", " %"),
    )  # fmt: skip
