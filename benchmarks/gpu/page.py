"""The results as a page and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import goals
from ralu_cache.report.table import Table


def page(results: Mapping[str, Any]) -> str:
    """Markdown: the goals, then each part that has run."""
    lines = [f"# {results['shape']} on {results['device']}", "", results["note"], "", *_goals(results)]
    for name in ("eager", "batch", "large", "compiled"):
        lines += _latency(name, results[name]) if name in results else []
    others = {"rows": _rows, "waits": _waits, "busy": _busy, "agreement": _agreement, "joints": _joints}
    for name, write in others.items():
        lines += write(results[name]) if name in results else []
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The first column is text, the others are numbers."""
    return [Table(heads, [tuple(map(str, row)) for row in rows]).markdown(), ""]


def _goals(results: Mapping[str, Any]) -> list[str]:
    heads = ("goal", "wanted", "found", "")
    rows = [(goal.name, goal.wanted, goal.found or "", goal.state) for goal in goals(results)]
    return ["## Goals", "", *_table(heads, rows)]


def _latency(name: str, part: Mapping[str, Any]) -> list[str]:
    lines = [f"## {name}", ""]
    if not part.get("rows"):
        return [*lines, f"Not measured: {part.get('skipped', 'no round could end in time')}.", ""]
    heads = (
        "method", "seconds", "of them outside its steps", "faster", "fewer FLOPs", "of what FLOPs allow", "peak memory",
        "cached", "predictions",
    )  # fmt: skip
    lines += _table(heads, [_latency_row(row) for row in part["rows"]])
    lines += [f"Medians of {part['rounds']} rounds in turns. Milliseconds a step, by image tokens:", ""]
    for row in part["rows"]:
        steps = ", ".join(f"{kind} {ms:.1f}" for kind, ms in row["steps"].items())
        moves = row["transition_seconds"]
        lines.append(f"- `{row['method']}`: {steps}" + ("" if moves is None else f"; transitions {1000 * moves:.1f}"))
    if "graphs" in part:
        first = sum(part["first_seconds"].values())
        lines += ["", f"{part['graphs']} graphs ({part['backend']}) in the first calls, which took {first:.0f} s."]
    return [*lines, ""]


def _latency_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = row["flop_ratio"]
    return (
        f"`{row['method']}`", f"{row['seconds']:.3f}", f"{row['outside_seconds']:.3f}", f"{row['speedup']:.2f}x",
        *(("", "") if ratio is None else (f"{ratio:.2f}x", f"{row['speedup'] / ratio:.0%}")),
        f"{row['peak_bytes'] / 2**30:.2f} GiB", f"{row['cached_bytes'] / 2**20:.0f} MiB",
        f"{row['held_bytes'] / 2**20:.1f} MiB",
    )  # fmt: skip


def _rows(part: Mapping[str, Any]) -> list[str]:
    heads = ("step", "stage", "attention", "milliseconds", "of a full step", "of its FLOPs")
    found = [
        (r["step"], f"{r['stage']}, {r['tokens']} tokens", r["backend"], f"{r['milliseconds']:.2f}",
         f"{r['share']:.0%}", f"{r['flop_share']:.0%}")
        for r in part.get("rows", [])
    ]  # fmt: skip
    return ["## Some tokens of a step", "", *_table(heads, found), *_skipped(part)]


def _waits(part: Mapping[str, Any]) -> list[str]:
    heads = ("method", "most waits of an ordinary step", "of all steps")
    found = [
        (f"`{label}`", "not measured" if w["most"] is None else w["most"], " ".join(map(str, w["by_step"] or ())))
        for label, w in part.get("waits", {}).items()
    ]
    return ["## How often the host waits for the device", "", *_table(heads, found), *_skipped(part)]


def _busy(part: Mapping[str, Any]) -> list[str]:
    found = [
        (f"`{label}`", "not measured" if b is None else f"{b[0]:.1%}") for label, b in part.get("busy", {}).items()
    ]
    return [
        "## Share of the time in which kernels are at work", "", *_table(("method", "share"), found), *_skipped(part),
    ]  # fmt: skip


def _agreement(part: Mapping[str, Any]) -> list[str]:
    found = [
        (row["candidate"], f"{row['error']:.2e}", f"{row['bound']:.2e}", "yes" if row["within"] else "no")
        for row in part.get("rows", [])
    ]
    lines = _table(("candidate", "relative error to float64", "bound", "within"), found)
    return ["## Numerical agreement", "", *lines, *_skipped(part)]


def _joints(part: Mapping[str, Any]) -> list[str]:
    found = [
        (row["check"], row["kind"], f"{row['distance']:.2e}", "yes" if row["good"] else "no")
        for row in part.get("rows", [])
    ]
    return ["## At the joints", "", *_table(("check", "kind", "distance", "good"), found), *_skipped(part)]


def _skipped(part: Mapping[str, Any]) -> list[str]:
    reasons = part.get("skipped") or {}
    if isinstance(reasons, str):
        return [f"Not measured: {reasons}.", ""]
    return [f"Not measured: {name}: {reason}." for name, reason in reasons.items()] + [""] * bool(reasons)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Speed-up of each method over what its FLOPs allow, eager and compiled."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    modes = [mode for mode in ("eager", "compiled") if results.get(mode, {}).get("rows")]
    if not modes:
        return
    rows = results[modes[0]]["rows"]
    places = {row["method"]: place for place, row in enumerate(rows)}
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.5), layout="constrained")
    axis.barh(list(places.values()), [row["flop_ratio"] or 0 for row in rows], color="#d9dee5", label="fewer FLOPs")
    for number, mode in enumerate(modes):
        shown = [row for row in results[mode]["rows"] if row["method"] in places]
        height = 0.7 / len(modes)
        where = [places[row["method"]] + (number - (len(modes) - 1) / 2) * height for row in shown]
        axis.barh(where, [row["speedup"] for row in shown], height=height, label=f"faster, {mode}")
    axis.set_yticks(list(places.values()), list(places))
    axis.set_ylim(len(places) - 0.4, -0.6)
    axis.set(xlabel="times", title=f"{results['shape']}, batch 1, {results['device']}")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
