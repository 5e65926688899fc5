"""What `benchmarks.calibration` measured, as tables and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.hindsight import Judgement
from ralu_cache.report.figures import INK, save
from ralu_cache.report.table import Table
from ralu_cache.temporal.profile import Profile

ORACLE, APART = ORACLES = "oracle", "oracle, branches apart"
COLOURS = {
    "published": "#c1543c", "identity": "#8a8d98", "calibrated": "#3d5a98", "calibrated, degree 1": "#2a9d8f",
    "calibrated without stages": "#e09f3e", ORACLE: INK, APART: "#a46bb0",
}  # fmt: skip
DASHED = ("calibrated, degree 1", *ORACLES)
RATIOS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # of FLOPs, at which the curves are compared


@dataclass(frozen=True)
class Point:
    """One choice of coefficients at one threshold on one plan.

    computed: of `steps`, mean over pictures and guidance branches. flop_ratio: so many times fewer than the uncached
    run of the plan; psnr (dB), ssim: of each picture to that run. judgement: None for an oracle, which is the measure.
    alike: share of the decisions that are the same whether the signal is the cached run's own or the uncached one's.
    """

    plan: str
    coefficients: str
    threshold: float
    steps: int
    computed: float
    flop_ratio: float
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    judgement: Judgement | None
    alike: float | None


@dataclass(frozen=True)
class Fitted:
    """What was fitted on a plan. by_step: of each stage's changes of signal and output, the share of the variance that
    the step explains.
    """

    profile: Profile
    by_step: Sequence[tuple[float, float]]


def text(setting: Mapping[str, Any], points: Sequence[Point], fits: Mapping[str, Fitted]) -> str:
    """The whole page."""
    hardware = setting["hardware"]
    parts = [
        f"# TeaCache's coefficients on {setting['model']}",
        f"{len(setting['prompts'])} prompts (seeds from {setting['first_seed']} on), "
        f"{'guided' if setting['guided'] else 'unguided'}, {setting['size']}x{setting['size']} pixels, "
        f"{setting['plain_steps']} plain steps; fitted, and thresholds chosen, on {len(setting['fit_prompts'])} others "
        f"(seeds from {setting['first_fit_seed']} on). {hardware['name']}, {hardware['threads']} threads; nothing is "
        "timed.",
        "FLOPs, PSNR and SSIM are relative to the uncached run of the same plan; ± is the standard error over the "
        "pictures. Hurting and needless: shares of the decisions that no rule forces, against the oracle that computes "
        "as many steps (`benchmarks/hindsight.py`). By step: how much of the changes' variance the "
        "step explains, the same for every picture; the rest differs from picture to picture. Decided alike: on the "
        "cached run's own signal as on that of the uncached run, on which decisions are judged. Made by "
        "`python -m benchmarks.calibration`.",
    ]  # fmt: skip
    for plan in dict.fromkeys(point.plan for point in points):
        mine = [point for point in points if point.plan == plan]
        parts += [f"## {plan}: {mine[0].steps} steps", _fits(fits[plan]).markdown(), _points(mine).markdown()]
        parts += _at_equal_cost(mine)
    return "\n\n".join(parts) + "\n"


def _fits(fitted: Fitted) -> Table:
    titles = ("stage", "pairs", "change of the signal", "degree", "rms error", "R²", "signal by step", "output by step")
    rows = []
    for number, (fit, shares) in enumerate(zip(fitted.profile.stages, fitted.by_step, strict=True), 1):
        low, high = fit.range
        rows.append((
            str(number), str(fit.pairs), f"{low:.3g} to {high:.3g}", str(len(fit.coefficients) - 1), f"{fit.rms:.3g}",
            "" if fit.r2 is None else f"{fit.r2:.3f}", *(f"{share:.1%}" for share in shares),
        ))  # fmt: skip
    return Table(titles, rows)


def _points(points: Sequence[Point]) -> Table:
    titles = (
        "coefficients", "threshold", "computed", "FLOPs", "PSNR", "SSIM", "hurting", "needless", "decided alike",
    )  # fmt: skip
    rows = []
    for point in sorted(points, key=lambda point: list(COLOURS).index(point.coefficients)):
        verdict, decisions = point.judgement, ["", "", ""]
        if verdict is not None:
            shares = verdict.hurting / verdict.free, verdict.needless / verdict.free, point.alike
            decisions = [f"{share:.1%}" for share in shares]
        rows.append((
            point.coefficients, f"{point.threshold:.4g}", f"{point.computed:.1f}", f"{point.flop_ratio:.2f}x",
            f"{_mean(point.psnr, 2)} dB", _mean(point.ssim, 4), *decisions,
        ))  # fmt: skip
    return Table(titles, rows)


def _at_equal_cost(points: Sequence[Point]) -> list[str]:
    """PSNR and SSIM where the curves cross the same cost, and how far from the published ones, picture by picture."""
    curves = {name: [p for p in points if p.coefficients == name] for name in COLOURS}
    curves = {name: curve for name, curve in curves.items() if curve}
    low = max(min(point.flop_ratio for point in curve) for curve in curves.values())
    high = min(max(point.flop_ratio for point in curve) for curve in curves.values())
    ratios = [ratio for ratio in RATIOS if low <= ratio <= high]
    if not ratios:
        return ["The curves have no cost in common."]
    parts = [
        "At equal FLOPs, between the points of a curve: the mean, in brackets its difference to that of the published "
        "coefficients, and the worst picture."
    ]
    for title, measure, digits in (("PSNR, dB", "psnr", 2), ("SSIM", "ssim", 4)):
        rows = []
        for name, curve in curves.items():
            cells = [name]
            for ratio in ratios:
                here, published = at_cost(curve, ratio, measure), at_cost(curves["published"], ratio, measure)
                gain = "" if name == "published" else f" ({_mean(here - published, digits, '+')})"
                cells.append(f"{here.mean():.{digits}f}{gain}, worst {here.min():.{digits}f}")
            rows.append(cells)
        parts.append(Table((title, *(f"{ratio:g}x fewer" for ratio in ratios)), rows).markdown())
    return parts


def at_cost(curve: Sequence[Point], ratio: float, measure: str) -> NDArray[np.float64]:
    """(P,) "psnr" or "ssim" of each picture at so many times fewer FLOPs, linear between the curve's points."""
    curve = sorted(curve, key=lambda point: point.flop_ratio)
    x, y = [point.flop_ratio for point in curve], np.array([getattr(point, measure) for point in curve])
    return np.array([np.interp(ratio, x, picture) for picture in y.T])


def _mean(values: Sequence[float] | NDArray[np.float64], digits: int, sign: str = "") -> str:
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):{sign}.{digits}f} ± {error:.{digits}f}"


def save_curves(points: Sequence[Point], path: str | PathLike[str]) -> None:
    """For each plan: likeness over cost, and below it the wrong decisions over the computed steps."""
    plans = list(dict.fromkeys(point.plan for point in points))
    figure = Figure(figsize=(5.6 * len(plans), 8.0), layout="constrained")
    rows = figure.subplots(2, len(plans), squeeze=False)
    for plan, likeness, decisions in zip(plans, *rows, strict=True):
        for name, colour in COLOURS.items():
            curve = [point for point in points if point.plan == plan and point.coefficients == name]
            style = {"color": colour, "marker": "o", "markersize": 4, "linestyle": "--" if name in DASHED else "-"}
            if curve:
                curve.sort(key=lambda point: point.flop_ratio)
                likeness.plot(
                    [p.flop_ratio for p in curve], [float(np.mean(p.psnr)) for p in curve], label=name, **style
                )
            judged = [(p.computed, 100 * p.judgement.wrong) for p in curve if p.judgement is not None]
            if judged:
                decisions.plot(*zip(*judged, strict=True), label=name, **style)
        likeness.set_title(plan, color=INK, fontsize=11)
        likeness.set_xlabel("times fewer FLOPs than the uncached run of the plan")
        likeness.set_ylabel("PSNR to it, dB")
        decisions.set_xlabel(f"steps computed of {next(p.steps for p in points if p.plan == plan)}")
        decisions.set_ylabel("hurting or needless, % of free decisions")
        decisions.set_ylim(bottom=0)
        for axis in (likeness, decisions):
            axis.grid(alpha=0.25)
            axis.legend(fontsize=8)
    save(figure, path)
