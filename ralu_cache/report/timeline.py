"""Runs over their steps: sigma and stages, and which tokens were computed, reused or inherited, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ralu_cache.report.figures import COLOURS, INK, as_pictures, draw_regions, plain, save
from ralu_cache.report.record import RunRecord
from ralu_cache.report.steps import BranchRecord, StepRecord
from ralu_cache.report.text import gain

ROWS = "recomputed rows"
WORK = {"computed": "#3d5a98", ROWS: "#8fb8de", "reused": "#f2b134", "inherited": "#e0653e"}
MARKS = {"empty": "#e4e6eb", "inherited": "#e0653e", "valid": "#6aa58f"}
BRANCHES = ("#7a4988", "#2a9d8f", "#b5651d", "#5b6c8f")
MAX_BRANCHES = len(BRANCHES)  # panels of distances
MAX_SAMPLES = 8  # pictures shown beside a run


def save_run(report: RunRecord, path: str | PathLike[str], image: Any = None) -> None:
    """One run and, with `image` (PIL, array, or a list of them), its regions over the pictures."""
    pictures = as_pictures(image)[:MAX_SAMPLES]
    columns = 2 if len(pictures) > 1 else len(pictures)
    lines = -(-len(pictures) // columns) if pictures else 0
    width = 3.6 if len(pictures) == 1 else 2.2 * columns
    spared = gain(report)
    parts = [textwrap.shorten(part, 40, placeholder=" ...)") for part in (report.spatial, report.temporal)]
    name = " + ".join(part for part in parts if part != "none")
    run = {f"{name}: {spared}" if len(name) < 40 else f"{name}\n{spared}": report}
    figure = Figure(figsize=(7.5 + width, max(_inches(run), 2.1 * lines)), layout="constrained")
    if not pictures:
        draw_runs(figure, run)
    else:
        halves = figure.add_gridspec(1, 2, width_ratios=(7.5, width))
        draw_runs(figure.add_subfigure(halves[0]), run)
        right = figure.add_subfigure(halves[1])
        right.suptitle("refined regions", color=INK, fontsize=10)
        axes = list(right.subplots(lines, columns, squeeze=False).flat)
        for axis in axes:
            axis.set_axis_off()
        for sample, (axis, picture) in enumerate(zip(axes, pictures, strict=False)):
            draw_regions(axis, picture, [masks[sample] for masks in report.regions if sample < len(masks)])
    save(figure, path)


def save_runs(reports: Mapping[str, RunRecord], path: str | PathLike[str]) -> None:
    """Named runs side by side on common axes."""
    figure = Figure(figsize=(1.4 + 4.2 * len(reports), _inches(reports)), layout="constrained")
    draw_runs(figure, reports)
    save(figure, path)


def draw_runs(figure: FigureBase, reports: Mapping[str, RunRecord]) -> None:
    """From top to bottom: sigma and stages; tokens by what was done with them; distances of each branch; the ledger.

    Of runs that don't cache, the first two; the ledger only where it keeps something.
    """
    heights, panels = _heights(reports), _panels(reports)
    ledger = len(heights) > 2 + panels
    axes = figure.subplots(len(heights), len(reports), squeeze=False, sharex="col", sharey="row", height_ratios=heights)
    for (title, report), column in zip(reports.items(), axes.T, strict=True):
        column[0].set_title(title, fontsize=10, color=INK)
        draw_sigmas(column[0], report)
        draw_work(column[1], report)
        for branch in range(panels):
            draw_distances(column[2 + branch], report, branch)
        if ledger:
            draw_marks(column[-1], report)
        column[-1].set_xlabel("step")
        column[-1].locator_params(axis="x", integer=True)
    names = [f"branch {branch + 1}\ndistance" for branch in range(panels)] if panels > 1 else ["distance"] * panels
    names = ["sigma (1 noise, 0 clean)", "tokens of\na sample", *names, "tokens found\nin the cache"]
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name)
    figure.align_ylabels(axes[:, 0])
    if ledger:
        axes[-1, 0].set_yticks((0, 0.5, 1), ("0%", "50%", "100%"))
        _legend(axes[-1, -1], _patches(MARKS))
    if any(report.caches for report in reports.values()):
        sparse = any(report.sparse for report in reports.values())
        _legend(axes[1, -1], _patches({name: colour for name, colour in WORK.items() if sparse or name != ROWS}))
    if panels:
        _legend(axes[2, -1], _distance_keys())
        for line in axes[2 : 2 + panels]:  # not before all columns are drawn: it ends the automatic scale
            line[0].set_ylim(bottom=0)


def _heights(reports: Mapping[str, RunRecord]) -> tuple[float, ...]:
    """The panels' shares of the height: of runs without branches that cache there is no ledger to show."""
    if not any(report.caches for report in reports.values()):
        return 3.0, 1.4
    ledger = any(step.branches for report in reports.values() for step in report.steps)
    return (2.2, 2.6, *(1.25,) * _panels(reports), *(1.0,) * ledger)


def _inches(reports: Mapping[str, RunRecord]) -> float:
    """Of the whole figure."""
    return 1.05 * sum(_heights(reports)) + 0.3


def draw_sigmas(axis: Axes, report: RunRecord) -> None:
    """Sigma over the steps, stages shaded and named, transitions as jumps."""
    start = 0
    for number, stage in enumerate(report.stages):
        colour = COLOURS[stage.kind]
        steps = report.steps[start : start + stage.steps]
        path = [step.sigma for step in steps] + [stage.sigma_end]
        axis.axvspan(start, start + stage.steps, color=colour, alpha=0.12, lw=0)
        if number:  # the transition before this stage
            before = report.steps[start - 1].sigma_next
            axis.plot([start, start], [before, path[0]], color=INK, lw=1, ls=(0, (2, 2)))
            axis.annotate("", (start, path[0]), (start, before), arrowprops={"arrowstyle": "->", "color": INK, "lw": 1})
        axis.plot(range(start, start + len(path)), path, color=colour, lw=2, marker="o", ms=3.5)
        name = f"{stage.kind}\n{stage.steps} step{'s' if stage.steps > 1 else ''}"
        axis.text(start + stage.steps / 2, 1.08, name, color=colour, fontsize=8, ha="center", va="center")
        start += stage.steps
    axis.set(ylim=(-0.03, 1.17), xlim=(0, max(start, 1)), yticks=(0, 0.25, 0.5, 0.75, 1))
    plain(axis)


def draw_work(axis: Axes, report: RunRecord) -> None:
    """A bar a step, as high as the layout has tokens, divided by what was done with them over samples and branches.

    Of a run that doesn't cache, in the colours of the stages. Where nobody knows the tokens, bars are shares of 1.
    """
    tokens = np.array([step.tokens or 1 for step in report.steps])
    if report.caches:
        _stack(axis, np.array([work(step) for step in report.steps]), tokens, list(WORK.values()))
    else:
        kinds = [COLOURS[stage.kind] for stage in report.stages for _ in range(stage.steps)]
        axis.bar(np.arange(len(tokens)) + 0.5, tokens, width=0.88, color=kinds)
    for start in _stage_starts(report)[1:]:
        axis.axvline(start, color=INK, lw=1, ls=(0, (2, 2)))
    start = 0
    for stage in report.stages:
        end = start + stage.steps
        if share := fmean(step.reused_share for step in report.steps[start:end]):
            place = ((start + end) / 2, 1.02 * (stage.tokens or 1))
            axis.text(*place, f"{share:.0%} reused", fontsize=7.5, color=INK, ha="center", va="bottom")
        start = end
    axis.set_ylim(0, 1.12 * max([1, *(step.tokens for step in report.steps)]))
    plain(axis)


def work(step: StepRecord) -> tuple[float, float, float, float]:
    """Shares of a step's tokens, over all samples and branches, in the order of WORK.

    Computed with all others of their sample, recomputed while those were passed over, reused while valid, reused as
    inherited. After a call whatever is inherited was reused so, for what is computed is valid.
    """
    reused, rows = step.reused_share, step.recomputed_share
    inherited = sum(branch.inherited for branch in step.branches) / max(step.asked * step.tokens, 1)
    share = min(inherited, reused)
    return 1 - reused - rows, rows, reused - share, share


def draw_distances(axis: Axes, report: RunRecord, branch: int) -> None:
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


def draw_marks(axis: Axes, report: RunRecord) -> None:
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


def _stage_starts(report: RunRecord) -> list[int]:
    steps = [stage.steps for stage in report.stages]
    return [sum(steps[:number]) for number in range(len(steps))]


def _panels(reports: Mapping[str, RunRecord]) -> int:
    """Panels of distances that are needed: as many as there are branches, none if no policy measures a distance."""
    counts = [
        len(step.branches)
        for report in reports.values()
        for step in report.steps
        if any(np.isfinite(branch.distance).any() for branch in step.branches)
    ]
    return min(max(counts, default=0), MAX_BRANCHES)


def _patches(colours: Mapping[str, str]) -> dict[str, Patch | Line2D]:
    return {name: Patch(color=colour) for name, colour in colours.items()}


def _distance_keys() -> dict[str, Patch | Line2D]:
    point: dict[str, Any] = {"color": BRANCHES[0], "marker": "o", "ms": 3.8, "lw": 0.8}
    return {
        "threshold": Line2D([], [], color="#c1272d", lw=1.4),
        "sum, computed": Line2D([], [], **point),
        "sum, reused": Line2D([], [], mfc="white", **point),
        "at this step": Line2D([], [], color=BRANCHES[0], lw=0.9, ls=":"),
    }


def _legend(axis: Axes, keys: Mapping[str, Patch | Line2D]) -> None:
    """Beside the last column."""
    axis.legend(
        list(keys.values()), list(keys), loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7.5, frameon=False,
        handlelength=1.4, labelcolor=INK,
    )  # fmt: skip
