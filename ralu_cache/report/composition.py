"""The whole composition in one figure: which tokens were computed, reused or inherited, and why (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ralu_cache.report.figures import INK, draw_sigmas, plain, save, save_report
from ralu_cache.report.record import BranchRecord, Report, StepRecord

ROWS = "recomputed rows"
WORK = {"computed": "#3d5a98", ROWS: "#8fb8de", "reused": "#f2b134", "inherited": "#e0653e"}
MARKS = {"empty": "#e4e6eb", "inherited": "#e0653e", "valid": "#6aa58f"}
BRANCHES = ("#7a4988", "#2a9d8f", "#b5651d", "#5b6c8f")
MAX_BRANCHES = len(BRANCHES)  # panels of distances


def save_compositions(reports: Mapping[str, Report], path: str | PathLike[str]) -> None:
    """One composition per named run, side by side on common axes."""
    rows = _branches(reports)
    figure = Figure(figsize=(1.4 + 4.2 * len(reports), height(rows)), layout="constrained")
    draw_compositions(figure, reports)
    save(figure, path)


def save_composition(report: Report, path: str | PathLike[str], image: Any = None) -> None:
    """The composition of one run and, with `image`, its regions over the pictures (see `plots.save_report`)."""
    save_report(report, path, image, draw_compositions, height(_branches({"": report})))


def height(branches: int) -> float:
    """Inches that a composition needs with panels for so many branches."""
    return 6.4 + 1.3 * branches


def draw_compositions(figure: FigureBase, reports: Mapping[str, Report]) -> None:
    """From top to bottom: sigma and stages; tokens by what was done with them; distances of each branch; the ledger."""
    panels = _branches(reports)
    heights = (2.2, 2.6, *(1.25,) * panels, 1.0)
    axes = figure.subplots(len(heights), len(reports), squeeze=False, sharex="col", sharey="row", height_ratios=heights)
    for column, (title, report) in enumerate(reports.items()):
        draw_sigmas(axes[0, column], report)
        axes[0, column].set_title(title, fontsize=10, color=INK)
        draw_work(axes[1, column], report)
        for branch in range(panels):
            draw_distances(axes[2 + branch, column], report, branch)
        draw_marks(axes[-1, column], report)
        axes[-1, column].set_xlabel("step")
        axes[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("sigma (1 noise, 0 clean)")
    axes[1, 0].set_ylabel("tokens of a sample")
    for branch in range(panels):
        axes[2 + branch, 0].set_ylabel(f"branch {branch + 1}\ndistance" if panels > 1 else "distance")
    axes[-1, 0].set_ylabel("tokens found\nin the cache")
    axes[-1, 0].set_yticks((0, 0.5, 1), ("0%", "50%", "100%"))
    figure.align_ylabels(axes[:, 0])
    sparse = any(report.sparse for report in reports.values())
    _legend(axes[1, -1], _patches({name: colour for name, colour in WORK.items() if sparse or name != ROWS}))
    _legend(axes[-1, -1], _patches(MARKS))
    if panels:
        _legend(axes[2, -1], _distance_keys())
        for line in axes[2 : 2 + panels]:  # not before all columns are drawn: it ends the automatic scale
            line[0].set_ylim(bottom=0)


def draw_work(axis: Axes, report: Report) -> None:
    """A bar a step, as high as the layout has tokens, divided by what was done with them over samples and branches."""
    shares = np.array([work(step) for step in report.steps]).reshape(-1, len(WORK))
    _stack(axis, shares, np.array([step.tokens for step in report.steps]), list(WORK.values()))
    for start in _stage_starts(report)[1:]:
        axis.axvline(start, color=INK, lw=1, ls=(0, (2, 2)))
    start = 0
    for stage in report.stages:
        end = start + stage.steps
        if share := fmean(step.reused_share for step in report.steps[start:end]):
            place = ((start + end) / 2, 1.02 * stage.tokens)
            axis.text(*place, f"{share:.0%} reused", fontsize=7.5, color=INK, ha="center", va="bottom")
        start = end
    axis.set_ylim(0, 1.12 * max((step.tokens for step in report.steps), default=1))
    plain(axis)


def work(step: StepRecord) -> tuple[float, float, float, float]:
    """Shares of a step's tokens, over all samples and branches, in the order of WORK.

    Computed with all others of their sample, recomputed while those were passed over, reused while valid, reused as
    inherited. After a call whatever is inherited was reused so, for what is computed is valid.
    """
    reused, rows = step.reused_share, step.recomputed_share
    inherited = sum(branch.inherited for branch in step.branches) / max(step.samples * step.tokens, 1)
    share = min(inherited, reused)
    return 1 - reused - rows, rows, reused - share, share


def draw_distances(axis: Axes, report: Report, branch: int) -> None:
    """Each sample's added-up distances (thick) and its distance at each step (thin, dotted), under the threshold.

    A filled point was computed, an open one reused. Policies that measure nothing leave a note instead.
    """
    records = {index: step.branches[branch] for index, step in enumerate(report.steps) if branch < len(step.branches)}
    colour = BRANCHES[branch % MAX_BRANCHES]
    starts = _stage_starts(report)
    if not any(np.isfinite(record.distance).any() for record in records.values()):
        note = "no distance: steps are counted" if records else "no such branch"
        axis.text(0.5, 0.5, note, transform=axis.transAxes, fontsize=8, color=INK, ha="center", va="center", alpha=0.7)
    else:
        for start in starts[1:]:
            axis.axvline(start, color=INK, lw=1, ls=(0, (2, 2)))
        for sample in range(max(len(record.distance) for record in records.values())):
            _draw_sample(axis, records, sample, colour, [*starts, len(report.steps)])
        for index, record in records.items():
            axis.plot([index, index + 1], [record.threshold] * 2, color="#c1272d", lw=1.4, zorder=1)
    plain(axis)


def _draw_sample(
    axis: Axes, records: Mapping[int, BranchRecord], sample: int, colour: str, bounds: Sequence[int]
) -> None:
    for start, end in pairwise(bounds):  # a stage's sums do not go on in the next
        steps = [index for index in range(start, end) if index in records and sample < len(records[index].distance)]
        places = np.array(steps) + 0.5
        distances = [records[index].distance[sample] for index in steps]
        totals = [_total(records[index], sample) for index in steps]
        reused = np.array([records[index].reused[sample] for index in steps], dtype=bool)
        axis.plot(places, distances, color=colour, lw=0.9, ls=":", alpha=0.7)
        axis.plot(places, totals, color=colour, lw=0.8, alpha=0.45)
        for chosen, fill in ((~reused, colour), (reused, "white")):
            values = np.where(chosen, totals, np.nan)
            axis.plot(places, values, "o", ms=3.8, mfc=fill, mec=colour, mew=1.1, lw=0, zorder=3)


def _total(record: BranchRecord, sample: int) -> float:
    """What was held against the threshold; the bare distance where the policy adds nothing up."""
    return record.total[sample] if record.total else record.distance[sample]


def draw_marks(axis: Axes, report: Report) -> None:
    """A bar a step: shares of the tokens whose cached feature each call found empty, inherited and valid."""
    found = np.array([np.sum([branch.found for branch in step.branches] or [(0, 0, 0)], 0) for step in report.steps])
    totals = np.maximum(found.reshape(-1, 3).sum(1, keepdims=True), 1)
    _stack(axis, found.reshape(-1, 3)[:, ::-1] / totals, np.ones(len(found)), list(MARKS.values())[::-1])
    axis.set_ylim(0, 1)
    plain(axis)


def _stack(axis: Axes, shares: NDArray[np.float64], heights: NDArray[np.float64], colours: Sequence[str]) -> None:
    """Bars of `heights` (steps,), each divided from bottom to top by `shares` (steps, colours)."""
    places, bottom = np.arange(len(shares)) + 0.5, np.zeros(len(shares))
    for share, colour in zip(shares.T, colours, strict=True):
        axis.bar(places, share * heights, width=0.88, bottom=bottom, color=colour, lw=0)
        bottom += share * heights


def _stage_starts(report: Report) -> list[int]:
    steps = [stage.steps for stage in report.stages]
    return [sum(steps[:number]) for number in range(len(steps))]


def _branches(reports: Mapping[str, Report]) -> int:
    """Panels of distances that are needed: as many as there are branches, none if no policy measures a distance."""
    counts = [
        len(step.branches)
        for report in reports.values()
        for step in report.steps
        if any(np.isfinite(branch.distance).any() for branch in step.branches)
    ]
    return min(max(counts, default=0), MAX_BRANCHES)


def _patches(colours: Mapping[str, str]) -> dict[str, Artist]:
    return {name: Patch(color=colour) for name, colour in colours.items()}


def _distance_keys() -> dict[str, Artist]:
    point: dict[str, Any] = {"color": BRANCHES[0], "marker": "o", "ms": 3.8, "lw": 0.8}
    return {
        "threshold": Line2D([], [], color="#c1272d", lw=1.4),
        "sum, computed": Line2D([], [], **point),
        "sum, reused": Line2D([], [], mfc="white", **point),
        "at this step": Line2D([], [], color=BRANCHES[0], lw=0.9, ls=":"),
    }


def _legend(axis: Axes, keys: Mapping[str, Artist]) -> None:
    """Beside the last column."""
    axis.legend(
        list(keys.values()), list(keys), loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7.5, frameon=False,
        handlelength=1.4, labelcolor=INK,
    )  # fmt: skip
