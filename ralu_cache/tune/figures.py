"""The figures of a study: its front, the chosen plans over the noise level, and what mattered."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ralu_cache.profiles.profile import Front
from ralu_cache.report.figures import COLOURS, INK, plain
from ralu_cache.tune.front import Measured

SOFT = "#9aa0ac"
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40)
SHOWN = 12  # parameters, at most


def front_figure(front: Front, trials: Sequence[Measured], anew: bool = False) -> str:
    """Loss over speed: every trial, those that were given up, and the front as it was timed, and if `anew` judged,
    again."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for whole, marker, label in ((False, "x", "given up after two prompts"), (True, "o", "saw all prompts")):
        shown = [trial for trial in trials if trial.whole == whole]
        speed, loss = [1 / trial.share for trial in shown], [trial.loss for trial in shown]
        axes.plot(speed, loss, marker, ms=4, color=SOFT, alpha=0.7, label=label)
    points, colour = front.points, COLOURS["fine"]
    speeds, losses = [point.speedup for point in points], [point.loss for point in points]
    axes.plot(speeds, losses, "-o", color=colour, lw=1.4, ms=5, label="front, on other seeds" if anew else "front")
    axes.vlines(speeds, [point.low for point in points], [point.high for point in points], color=colour, lw=0.8)
    best = points[front.chosen]
    axes.plot([best.speedup], [best.loss], "o", ms=11, mfc="none", color=COLOURS["coarse"], label="taken by itself")
    low, high = min(point.low for point in points), max(point.high for point in points)
    axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
    _speed_axis(axes, max([*speeds, 2.0]), "faster" if front.cost == "seconds" else "fewer FLOPs")
    axes.set_ylabel(f"loss: {front.measure.label}{', ' + front.measure.unit if front.measure.unit else ''}")
    axes.legend(fontsize=8, frameon=False)
    plain(axes)
    return svg(figure)


def plans_figure(front: Front, trials: Sequence[Measured]) -> str:
    """Of each point a line of its steps at their noise levels, coloured by the tokens; rings are not guided."""
    levels = {trial.setting: trial.levels for trial in trials}
    figure = Figure(figsize=(7.2, 0.55 + 0.34 * len(front.points)), layout="constrained")
    axes = figure.subplots()
    for row, point in enumerate(front.points):
        axes.axhline(row, color=SOFT, lw=0.4, alpha=0.5, zorder=0)
        drawn: dict[str, float] = {}
        for sigma, kind, guided, computed in levels.get(point.setting, ()):
            lift = 0.16 * (len(drawn) - 1 if kind in drawn else len(drawn))  # a later stage stands higher
            drawn.setdefault(kind, lift)
            colour = COLOURS[kind]
            axes.plot(
                [sigma], [row + drawn[kind]], "o", ms=6 if computed else 3, color=colour,
                mfc=colour if guided and computed else "none",
            )  # fmt: skip
    axes.set(xlim=(1.02, -0.02), ylim=(-0.6, len(front.points) - 0.1))
    axes.set_xlabel("σ at which a step begins: noise 1, clean 0")
    axes.set_yticks(range(len(front.points)), [f"{point.speedup:.3g}×" for point in front.points])
    marks = [Line2D([], [], marker="o", ls="", color=COLOURS[kind], label=kind) for kind in ("coarse", "mixed", "fine")]
    marks.append(Line2D([], [], marker="o", ls="", mfc="none", color=INK, label="not guided"))
    marks.append(Line2D([], [], marker="o", ls="", ms=3, mfc="none", color=INK, label="not computed"))
    figure.legend(handles=marks, ncols=len(marks), fontsize=8, frameon=False, loc="outside upper center")
    plain(axes)
    return svg(figure)


def importance_figure(importances: Mapping[str, Mapping[str, float]]) -> str:
    """Bars of each parameter's share in how the loss and the cost vary. importances: by "loss" and "cost"."""
    most: dict[str, float] = {}
    for each in importances.values():
        for name, share in each.items():
            most[name] = max(most.get(name, 0.0), share)
    names = sorted(most, key=lambda name: most[name])[-SHOWN:]
    figure = Figure(figsize=(7.2, 0.7 + 0.3 * len(names)), layout="constrained")
    axes, height = figure.subplots(), 0.38
    for number, (what, each) in enumerate(importances.items()):
        shares = [each.get(name, 0.0) for name in names]
        colour = (COLOURS["fine"], COLOURS["coarse"])[number % 2]
        axes.barh(np.arange(len(names)) + (0.5 - number) * height, shares, height, color=colour, label=what)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlabel("share of the importance")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    plain(axes)
    return svg(figure)


def svg(figure: Figure) -> str:
    """The figure as a tag for a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def _speed_axis(axes: Axes, most: float, told: str) -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.95, 1.25 * most)
    axes.set_xticks([tick for tick in TICKS if tick <= 1.25 * most], minor=False)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlabel(f"times {told} than the full run")
