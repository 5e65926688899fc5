"""The evidence as a page, a plot of the fronts and pictures at equal cost, the worst cases among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence.duels import CACHES, FEWER, MEASURES, OURS, Duel, Way, front
from benchmarks.regime.pictures import shrink
from benchmarks.regime.settings import FULL
from benchmarks.regime.study_page import shown
from ralu_cache.quality.base import Pictures
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.report.figures import save_grid
from ralu_cache.report.table import Bold, Table

COLOURS = {OURS: "#1f77b4", FEWER: "#7f7f7f", CACHES: "#d62728"}
TITLES = {OURS: "this library", FEWER: "fewer steps (Euler, UniPC, DPM++2M, each at its best)", CACHES: "other caches"}


def duel_table(found: Sequence[Duel]) -> str:
    """A line for each of ours: what is drawn, how sharp, and how far from real renders."""
    titles = (
        "ours", "fewer FLOPs", "the best of the others at this cost", "attributes, %", "theirs", "difference (95 %)",
        "better on / equal / worse", "mean gradient, ‰", "theirs", "Fréchet distance", "theirs",
    )  # fmt: skip
    rows = []
    for duel in found:
        rival = duel.rival.told + (", their cheapest" if duel.rival.beyond else "")
        sharp = (way.values["gradient"].mean() for way in (duel.ours, duel.rival))
        distances = (way.frechet for way in (duel.ours, duel.rival))
        rows.append([
            duel.ours.told, f"{duel.ours.ratio:.3g}x", rival, f"{duel.ours.mean:.1f}", f"{duel.rival.mean:.1f}",
            shown(duel.difference(), 1, "+"), " / ".join(map(str, duel.wins())), *(f"{value:.1f}" for value in sharp),
            *("" if np.isnan(value) else f"{value:.0f}" for value in distances),
        ])  # fmt: skip
    return Table(titles, rows, left=(0, 2, 5)).markdown()


def measures_table(found: Sequence[Duel]) -> str:
    """A line for each of ours, a column for each measure: the paired difference, and on how many pictures ours is
    better, as good and worse; in bold what is told from even."""
    measures = [f"{each.label}, {each.unit}" if each.unit else each.label for each in MEASURES.values()]
    rows = []
    for duel in found:
        cells = [duel.ours.told, f"{duel.ours.ratio:.3g}x"]
        for name, each in MEASURES.items():
            if not len(duel.ours.values[name]):
                cells.append("")
                continue
            text = f"{shown(duel.difference(name), each.digits, '+')}; {'/'.join(map(str, duel.wins(name)))}"
            cells.append(text if duel.verdict(name) == "even" else Bold(text))
        rows.append(cells)
    return Table(("ours", "fewer FLOPs", *measures), rows, left=(0, *range(2, 2 + len(measures)))).markdown()


def verdicts(found: Sequence[Duel]) -> list[str]:
    """In words, measure by measure, which of ours win and which lose."""
    lines = []
    for name, each in MEASURES.items():
        some = [duel for duel in found if len(duel.ours.values[name])]
        told = {
            verdict: [f"{duel.ours.told} ({duel.ours.ratio:.3g}x)" for duel in some if duel.verdict(name) == verdict]
            for verdict in ("wins", "loses", "even")
        }
        parts = [f"{verdict}: {', '.join(names)}" for verdict, names in told.items() if names]
        if parts:
            lines.append(f"- {each.label}, {_pictures(some[0], name)} pictures. Ours {'; '.join(parts)}.")
    return lines


def _pictures(duel: Duel, measure: str) -> int:
    return len(duel.ours.values[measure])


def caches_table(found: Sequence[Duel]) -> str:
    """A line for each of the others' caches, beside what ours draw at its cost."""
    titles = (
        "cache", "pictures", "fewer FLOPs", "attributes, %", "ours at this cost, or for less", "fewer FLOPs", "ours, %",
        "difference (95 %)", "perceptual distance, ‰", "ours",
    )  # fmt: skip
    rows = []
    for duel in found:
        like = [way.values["perceptual"] for way in (duel.ours, duel.rival)]
        rows.append([
            duel.ours.told, str(_pictures(duel, "attributes")), f"{duel.ours.ratio:.3g}x", f"{duel.ours.mean:.1f}",
            duel.rival.told, f"{duel.rival.ratio:.3g}x", f"{duel.rival.mean:.1f}", shown(duel.difference(), 1, "+"),
            *(f"{values.mean():.0f}" if len(values) else "" for values in like),
        ])  # fmt: skip
    return Table(titles, rows, left=(0, 4)).markdown()


def page(models: Mapping[str, Sequence[Duel]], caches: Mapping[str, Sequence[Duel]]) -> str:
    """The Markdown page."""
    lines = [
        "# At equal cost: ours against the best of the others",
        "",
        "Made by `python -m benchmarks.evidence` from the rows of the [study](../regime/study.md), which tells",
        "settings, measures, prompts and seeds. Theirs are one front of fewer steps and caches, at guidance 6 and at",
        "the scale and interval that serve each best, ours every setting that has these pictures: the choice favours",
        "them. Their cost is made equal by interpolation in log FLOPs between two neighbours on the front, picture by",
        "picture; where none of them is so cheap, their cheapest stands here. Differences are paired, with 95 %",
        "bootstrap intervals; attributes are in the eyes of a classifier. The front is that of attributes; the same",
        "two are then held against each other by every measure: differences are ours less theirs, behind them the",
        "pictures on which ours is better, as good and worse. Of the mean gradient the distance to that of the full",
        "run's picture counts: softer and harsher are alike worse. Perceptual distances are of the first 64 pictures.",
    ]
    for model, found in models.items():
        pictures = _pictures(found[0], "attributes")
        lines += ["", f"## {model}, {pictures} pictures", "", f"![fronts](fronts_{model}.png)", ""]
        lines += [duel_table(found), "", "By every measure, told from even in bold:", "", measures_table(found)]
        lines += ["", "In words:", "", *verdicts(found)]
        if caches[model]:
            lines += ["", "Caches of diffusers' and of cache-dit's, and what was reimplemented from papers:", ""]
            lines.append(caches_table(caches[model]))
        lines += ["", f"![the pictures on which ours lose most, and others](worst_{model}.png)"]
    return "\n".join(lines) + "\n"


def plot(some: Sequence[Way], path: Path, title: str) -> None:
    """What is drawn against cost: all ways, and each kind's front."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from adjustText import adjust_text

    full = max((way for way in some if way.name == FULL), key=lambda way: way.mean)
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    texts = []
    for kind in (FEWER, CACHES, OURS):
        mine = [way for way in some if way.kind == kind and way.name != FULL]
        if not mine:
            continue
        lost = [bootstrap(way.values["attributes"] - full.values["attributes"]) for way in mine]
        spans = np.array([(each.value - each.low, each.high - each.value) for each in lost]).T
        axis.errorbar(
            [way.ratio for way in mine], [each.value for each in lost], spans, fmt="o", color=COLOURS[kind],
            alpha=0.75, markersize=4, elinewidth=0.8,
        )  # fmt: skip
        best = front(mine)
        heights = [way.mean - full.mean for way in best]
        axis.plot([way.ratio for way in best], heights, color=COLOURS[kind], label=TITLES[kind])
        texts += [axis.text(way.ratio, way.mean - full.mean, way.name, fontsize=7) for way in best]
    axis.axhline(0, color="#bbbbbb", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks([4, 6, 8, 12, 16, 24], ["4x", "6x", "8x", "12x", "16x", "24x"])
    axis.minorticks_off()
    axis.set(xlabel="fewer FLOPs than 50 guided steps", ylabel="attributes lost to the full run, points", title=title)
    axis.legend(loc="lower left")
    adjust_text(texts, ax=axis)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def strip(rows: Mapping[str, Pictures], prompts: Sequence[str], path: Path) -> None:
    """A small PNG: a row for each way."""
    save_grid(rows, list(prompts), path)
    shrink(path, (1200, 2000), 128)
