"""The study's page and plots, from what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ralu_cache.quality.intervals import bootstrap
from ralu_cache.report.table import Table

Rows = Mapping[str, dict[str, Any]]
HISTORIES = ("reset", "trend", "keep")
COLOURS = {"none": "#777777", "fine": "#0072b2", "coarse": "#d55e00", "multistep": "#009e73"}
MEASURES = ("attributes", "probability", "perceptual", "gradient")
TO_THE_PLAN = ("probability", "perceptual")
HEAD = """# Histories of predictions: what keeping them gives, and where reuse pays

Made by `python -m benchmarks.history` (see there for the commands); 128x128 pixels, picture i has prompt i of the
split and seed i. x: fewer FLOPs of the denoiser than 50 plain steps. Intervals are 95 %, by a bootstrap of the paired
differences over the pictures.
"""


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file by name."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["name"]: row for row in rows}


def difference(row: Mapping[str, Any], other: Mapping[str, Any], measure: str, digits: int = 1) -> str:
    """How much more a row has of a measure than another one."""
    found = bootstrap(np.array(row[measure]) - np.array(other[measure]))
    return f"{found.value:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def likeness_table(rows: Rows) -> str:
    """A line for each plan, solver and quantity: PSNR with the history forgotten, its trend alone, and kept."""
    kinds: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows.values():
        parts = row["parts"]
        key = parts["plan"], parts["solver"], parts["quantity"] + (" forecast" if "forecast" in row["name"] else "")
        kinds.setdefault(key, {})[parts["history"]] = row
    lines = []
    for (plan, solver, what), by in kinds.items():
        cells = [_decibels(by.get(history)) for history in HISTORIES]
        gain = difference(by["keep"], by["reset"], "full") if {"keep", "reset"} <= by.keys() else ""
        what = what if "forecast" in what else "all computed"
        lines.append([plan, solver, what, f"{next(iter(by.values()))['cost']:.1f}", *cells, gain])
    titles = ("plan", "solver", "", "x", *HISTORIES, "keep over reset")
    return Table(titles, lines, left=(0, 1, 2)).markdown()


def _decibels(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{np.mean(row['full']):.1f} / {np.mean(row['exact']):.1f}"


def cures_table(rows: Rows) -> str:
    """A line for each try, against the plan as it is."""
    base = next(iter(rows.values()))
    lines = []
    for row in rows.values():
        gain = "" if row is base else difference(row, base, "full")
        lines.append([row["parts"]["cure"], f"{row['cost']:.1f}", _decibels(row), gain])
    return Table((base["parts"]["plan"], "x", "PSNR, dB", "to the plan as it is"), lines, left=(0,)).markdown()


def regime_table(rows: Rows) -> str:
    """A line a setting, against the same plan in full; bold where fewer FLOPs cost nothing that is told."""
    lines = []
    for row in rows.values():
        parts = row["parts"]
        base = plan_alone(rows, parts["base"])
        what = parts["reuse"] if parts["reuse"] != "none" else parts["solver"]
        cells = [f"{parts['base']}: {parts['steps']}", what, f"{row['cost']:.1f}"]
        cells += [f"{np.mean(row[name]):.1f}" for name in MEASURES]
        cells += ["" if row is base else difference(row, base, name) for name in TO_THE_PLAN]
        lines.append(cells)
    titles = ("plan", "reuse, solver", "x", *MEASURES, *(f"{name}, to the plan's" for name in TO_THE_PLAN))
    return Table(titles, lines, left=(0, 1)).markdown()


def plan_alone(rows: Rows, base: str) -> dict[str, Any]:
    """A base's own row: every step computed, by Euler."""
    return next(row for row in rows.values() if row["parts"]["base"] == base)


def kind(row: Mapping[str, Any]) -> str:
    """What a row reuses, in a word."""
    reuse = row["parts"]["reuse"]
    return reuse.split()[0] if reuse != "none" else "none" if row["parts"]["solver"] == "euler" else "multistep"


def draw_regime(rows: Rows, path: Path) -> None:
    """Cost across; what is drawn, and its distance to the full run's, up."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for axis, (measure, title) in zip(
        figure.subplots(1, 2),
        (("probability", "probability of the stated, %"), ("perceptual", "perceptual distance, permille")),
        strict=True,
    ):
        for name, colour in COLOURS.items():
            chosen = [row for row in rows.values() if kind(row) == name]
            label = {"none": "steps left out", "fine": "forecasts in the fine stage", "coarse": "in the coarse stage"}
            axis.plot(
                [row["cost"] for row in chosen], [np.mean(row[measure]) for row in chosen], "o", color=colour, ms=5,
                label=label.get(name, "multistep solver"),
            )  # fmt: skip
        axis.set_xlabel("times fewer FLOPs than 50 plain steps")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def draw_likeness(tables: Mapping[str, Rows], path: Path) -> None:
    """What keeping adds over forgetting, a bar a plan; a panel a study."""
    figure = Figure(figsize=(1 + 4 * len(tables), 4.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tables), sharey=True))
    for axis, (title, rows) in zip(axes, tables.items(), strict=True):
        pairs = []
        for name, row in rows.items():
            other = rows.get(name.replace(" keep", " reset"))
            if other is not None and other is not row:
                gain = bootstrap(np.array(row["full"]) - np.array(other["full"]))
                pairs.append((name.replace(" keep", ""), gain))
        for place, (name, gain) in enumerate(pairs):
            colour = COLOURS["multistep"] if "multistep" in name or "dpm" in name else COLOURS["fine"]
            axis.barh(place, gain.value, color=colour, height=0.7)
            axis.plot([gain.low, gain.high], [place, place], color="black", lw=1)
        axis.set_yticks(range(len(pairs)), [name for name, _ in pairs], fontsize=6.5)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("dB, history kept over reset")
    figure.savefig(path, dpi=110)


def write(out: Path) -> None:
    """The page and the plots of a folder of measurements."""
    lines: list[str] = [HEAD]
    likeness = {path.stem.removeprefix("likeness_"): read(path) for path in sorted(out.glob("likeness_*.jsonl"))}
    for name, rows in likeness.items():
        count = len(next(iter(rows.values()))["full"])
        lines += [f"## By likeness: {name}, {count} pictures", "", "PSNR to 50 / 150 plain steps, dB.", ""]
        lines += [likeness_table(rows), ""]
    if likeness:
        draw_likeness(likeness, out / "likeness.png")
        lines += ["![what keeping adds](likeness.png)", ""]
    for path in sorted(out.glob("cures_*.jsonl")):
        rows, name = read(path), path.stem.removeprefix("cures_")
        count = len(next(iter(rows.values()))["full"])
        title = f"## Tries to mend forecasts that guidance bends: {name}, {count} pictures"
        lines += [title, "", "PSNR to 50 / 150 plain steps, dB.", "", cures_table(rows), ""]
    for path in sorted(out.glob("regime_*.jsonl")):
        rows, name = read(path), path.stem.removeprefix("regime_")
        count = len(next(iter(rows.values()))["probability"])
        lines += [f"## In the regime: {name}, {count} pictures", "", regime_table(rows), ""]
        picture = f"regime_{name}.png"
        draw_regime(rows, out / picture)
        lines += [f"![cost and what is drawn]({picture})", ""]
    note = out / "findings.md"
    if note.exists():
        lines.insert(1, note.read_text())
    (out / "history.md").write_text("\n".join(lines))


