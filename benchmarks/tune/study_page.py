"""The page and the plot of `benchmarks.tune.study`: what was tuned beside what was made by hand, and beside others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.tune.lines import DPM, KINDS, OTHERS, PLAIN, PLANS, REUSE, TUNED, UNIPC, Line
from ralu_cache.profiles.setting import Setting
from ralu_cache.quality.intervals import Interval, bootstrap
from ralu_cache.report.table import Table
from ralu_cache.tune.front import Measured, hypervolume

SPEEDS = (3, 4, 6, 8, 10, 12, 15, 20, 25)
WORST = 10.0  # points of probability, of the hypervolume
MEASURED = {
    "attributes": "Attributes, %", "scenes": "Scenes wholly right, %",
    "perceptual": "Perceptual distance to the full run, ‰", "psnr": "Likeness to the full run, PSNR in dB",
}  # fmt: skip
MARKERS = {PLANS: "s", REUSE: "P", PLAIN: "^", UNIPC: "v", DPM: "<", OTHERS: "x"}


def area(lines: Sequence[Line]) -> float:
    """The hypervolume of their probability lost; of each the value on the reported prompts."""
    return hypervolume(
        [Measured(n, Setting(), (line.lost["probability"].value,), 1 / line.ratio, 1 / line.ratio)
         for n, line in enumerate(lines)],
        WORST,
    )  # fmt: skip


def best_at(lines: Sequence[Line], speed: float, by_train: bool) -> Line | None:
    """The one that is at least so fast and lost least: on its own prompts, as `accelerate` takes it, or (a favour to
    others) on the reported ones."""
    fitting = [line for line in lines if line.ratio >= speed]
    key = (lambda line: line.high) if by_train else (lambda line: line.lost["probability"].value)
    return min(fitting, key=key, default=None)


def table(model: str, tuned: Sequence[Line], others: Sequence[Line], pictures: int) -> str:
    """The Markdown page."""
    page = [
        f"# What `ralu-cache tune` found for {model}, on other prompts", "",
        f"Guidance 6, 50 steps in full, {pictures} prompts and seeds of `benchmarks.regime.study` that nothing was",
        "chosen on, 95 % paired bootstrap intervals. Lost: points of the probability that the scene classifier gives",
        "to what the prompt states, against the full run of the same prompts. Tuned settings are chosen as `speedup=`",
        "does, by what they surely lost on the planner's own prompts; the best of the hand-made ones and peers at each",
        "speed is chosen on the very prompts that are reported, in its favour. [Account](account.md).",
        f"Hypervolume (share of the area above the front, 1 to 32x, below {WORST:g} points): tuned {area(tuned):.3f},",
        f"hand-made and peers {area(others):.3f}, all together {area([*tuned, *others]):.3f}.",
        "Made by `python -m benchmarks.tune.study`.", "",
        _duels(tuned, others), "", "## Each kind at its best", "",
        "Of each kind the setting that is at least so fast and lost least. First the points lost, then the same",
        "settings by other measures: means, and half of their 95 % intervals.", "",
        *_by_kind([*tuned, *others]), "## All settings", "", _every_setting([*tuned, *others]),
    ]  # fmt: skip
    return "\n".join(page) + "\n"


def _duels(tuned: Sequence[Line], others: Sequence[Line]) -> str:
    """Speed by speed, what was tuned against the best of all others."""
    titles = ("at least", "tuned", "lost", "hand-made or peer", "lost", "tuned lost more by")
    rows = []
    for speed in SPEEDS:
        ours, theirs = best_at(tuned, speed, True), best_at(others, speed, False)
        cells = [f"{speed}x"]
        for line in (ours, theirs):
            cells += ["–", ""] if line is None else [
                f"{line.ratio:.1f}x: {line.name}", told(line.lost["probability"]),
            ]  # fmt: skip
        more = ""
        if ours is not None and theirs is not None:
            more = told(bootstrap(theirs.values["probability"] - ours.values["probability"]))
        rows.append([*cells, more])
    return Table(titles, rows, left=(1, 2, 3, 4, 5)).markdown()


def _by_kind(lines: Sequence[Line]) -> Iterator[str]:
    """A table of each measure: speeds in rows, kinds in columns."""
    kinds = [kind for kind in KINDS if any(line.kind == kind for line in lines)]
    best = {
        (speed, kind): best_at([line for line in lines if line.kind == kind], speed, kind == TUNED)
        for speed in SPEEDS for kind in kinds
    }  # fmt: skip
    for measure, label in {"": "Probability of the stated: points lost", **MEASURED}.items():
        rows = [[f"{speed}x", *(_cell(best[speed, kind], measure) for kind in kinds)] for speed in SPEEDS]
        yield from (f"**{label}**", "", Table(("at least", *kinds), rows).markdown(), "")


def _cell(line: Line | None, measure: str) -> str:
    if line is None:
        return "–"
    if not measure:
        return told(line.lost["probability"])
    if measure not in line.values:
        return ""
    interval = bootstrap(line.values[measure])
    return f"{interval.value:.4g} ± {(interval.high - interval.low) / 2:.2g}"


def _every_setting(some: Sequence[Line]) -> str:
    """A row a setting, the slowest first."""
    titles = (
        "fewer FLOPs", "setting", "", "lost on its own prompts", "lost", "attributes lost", "perceptual, ‰", "PSNR, dB",
    )  # fmt: skip
    rows = []
    for line in sorted(some, key=lambda line: line.ratio):
        own = "" if line.train is None else f"{line.train:+.2f}"
        perceptual = f"{line.values['perceptual'].mean():.0f}" if "perceptual" in line.values else ""
        cells = [f"{line.ratio:.1f}x", line.name, line.kind, own]
        cells += [told(line.lost[key]) for key in ("probability", "attributes")]
        rows.append([*cells, perceptual, f"{line.values['psnr'].mean():.1f}"])
    return Table(titles, rows, left=(1, 2, 4, 5)).markdown()


def told(interval: Interval) -> str:
    return f"{interval.value:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def plot(tuned: Sequence[Line], others: Sequence[Line], path: Path) -> None:
    """Probability lost over the speed: on the planner's own prompts, and on the reported ones."""
    from matplotlib.figure import Figure

    from ralu_cache.report.figures import COLOURS, plain, save

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    own = [line.train for line in tuned]
    lost = [line.lost["probability"].value for line in tuned]
    speeds = [line.ratio for line in tuned]
    axes.plot(speeds, own, "--o", ms=3, lw=1.2, color=COLOURS["mixed"], label="tuned, on its own prompts")
    axes.plot(speeds, lost, "-o", ms=4, lw=1.2, color=COLOURS["fine"], label="tuned, on other prompts")
    for kind, marker in MARKERS.items():
        shown = [line for line in others if line.kind == kind]
        if shown:
            values = [line.lost["probability"].value for line in shown]
            axes.plot([line.ratio for line in shown], values, marker, ms=5, color=COLOURS["coarse"], label=kind)
    for lines, colour in ((tuned, COLOURS["fine"]), (others, COLOURS["coarse"])):
        bounds = [line.lost["probability"] for line in lines]
        low, high = [each.low for each in bounds], [each.high for each in bounds]
        axes.vlines([line.ratio for line in lines], low, high, color=colour, lw=0.8, alpha=0.4)
    axes.set_xscale("log")
    axes.set_xlim(2.5, 40)
    axes.set_xticks(SPEEDS, [f"{speed}×" for speed in SPEEDS])
    axes.minorticks_off()
    axes.set(ylim=(-3, 16), xlabel="times fewer FLOPs than 50 guided steps")
    axes.set_ylabel("probability of the stated lost, points")
    axes.legend(fontsize=8, frameon=False)
    plain(axes)
    save(figure, path)
