"""The summary of a sweep as CSV and as Markdown, and the sentences that stand in it and on the page."""

from __future__ import annotations

import csv
import io
import math

from ralu_cache.quality.base import MetricInfo
from ralu_cache.sweep.groups import LOOKS
from ralu_cache.sweep.loss import DROP, fastest_within, gain_of_both, loss_metric
from ralu_cache.sweep.rivals import ERRORS, Defeat, defeats
from ralu_cache.sweep.summary import Quality, Row, Summary, steps_asked


def csv_table(summary: Summary) -> str:
    """One line for each setting, plain numbers; what is not known is empty."""
    names = list(summary.header.metrics)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    titles = ["method", "family", "steps", "height", "width", "speedup", "speedup_q1", "speedup_q3", "timings",
              "flop_ratio", "pictures"]  # fmt: skip
    quality = [title for name in names for title in (name, f"{name}_standard_error")]
    writer.writerow([*titles, *quality, "failures", "error"])
    for row in summary.rows:
        at, values = row.setting, [row.quality.get(name, Quality(math.nan)) for name in names]
        writer.writerow([
            at.method, row.family, steps_asked(at), at.height, at.width, *map(_plain, (row.speedup, row.low, row.high)),
            row.timings, _plain(row.flop_ratio), row.pictures,
            *(_plain(number) for value in values for number in (value.mean, value.error)),
            row.failures, row.error or "",
        ])  # fmt: skip
    return file.getvalue()


def markdown_table(summary: Summary) -> str:
    """The settings by speed, in bold what is on a metric's front; below it how it was measured."""
    metrics = summary.header.metrics
    fronts = {name: summary.front(name) for name in metrics}
    titles = ["method", "steps", "faster", "fewer FLOPs", *(_title(info) for info in metrics.values())]
    lines = [f"| {' | '.join(map(escape_cell, titles))} |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in by_speed(summary):
        cells = [summary.label(row) + partial(row), str(steps_asked(row.setting)), speed(row), times(row.flop_ratio)]
        for name, info in metrics.items():
            text = quality_text(row.quality.get(name), info)
            cells.append(f"**{text}**" if row in fronts[name] else text)
        lines.append(f"| {' | '.join(map(escape_cell, cells))} |")
    lines += ["", caption(summary)]
    if (judge := loss_metric(summary)) is not None:
        lines += [
            "",
            f"## {loss_title(metrics[judge])}",
            "",
            "| size | group | faster | setting |",
            "|---|---|---:|---|",
        ]
        lines += [f"| {' | '.join(map(escape_cell, cells))} |" for cells in loss_cells(summary, judge)]
    lines += ["", f"## {DEFEATS_TITLE}", "", defeats_note(summary)]
    lines += [f"- {escape_cell(sentence(summary, defeat))}" for defeat in all_defeats(summary)]
    failed = [row for row in summary.rows if row.failures]
    lines += ["", "## Failures", ""] if failed else []
    lines += [f"- {escape_cell(summary.label(row))}: {row.failures} failed, {row.error}" for row in failed]
    return "\n".join(lines) + "\n"


def loss_csv(summary: Summary) -> str:
    """Speed at a given loss: one line for each size and group; empty where a group has nothing that keeps it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["metric", "drop", "height", "width", "group", "method", "steps", "speedup", "value"])
    if (name := loss_metric(summary)) is None:
        return file.getvalue()
    for size in summary.sizes:
        for group, row in (fastest_within(summary, size, name) or {}).items():
            found = ["", "", "", ""]
            if row is not None:
                quality = row.quality[name].mean
                found = [row.setting.method, str(steps_asked(row.setting)), _plain(row.speedup), _plain(quality)]
            writer.writerow([name, f"{DROP:g}", *size, group, *found])
    return file.getvalue()


def loss_title(info: MetricInfo) -> str:
    unit = "points" if info.unit == "%" else info.unit
    return f"Speed at a loss of at most {f'{DROP:g} {unit}'.strip()} of {info.label}"


def loss_cells(summary: Summary, name: str) -> list[tuple[str, str, str, str]]:
    """(size, group, speed, setting) in words; after each size how much several parts gain over one."""
    cells = []
    for height, width in summary.sizes:
        found, size = fastest_within(summary, (height, width), name), f"{width}x{height}"
        for group, row in (found or {}).items():
            what = (
                "nothing measured keeps that" if row is None else f"{summary.label(row)} ({_shown(row, name, summary)})"
            )
            cells.append((size, LOOKS[group].title, "" if row is None else times(row.speedup), what))
        gain = gain_of_both(found) if found else math.nan
        if not math.isnan(gain):
            cells.append((size, "stacked over the best of one alone", times(gain), ""))
    return cells


DEFEATS_TITLE = "Where others beat this library"


def all_defeats(summary: Summary) -> list[Defeat]:
    return [defeat for name in summary.plotted for defeat in defeats(summary, name)]


def defeats_note(summary: Summary) -> str:
    if not all_defeats(summary):
        return f"At no speed measured is a peer or plain step reduction better by more than {ERRORS} standard errors."
    return (
        f"Better than all of ours that are as fast, by more than {ERRORS} standard errors of the difference, paired by "
        "picture:\n"
    )


def sentence(summary: Summary, defeat: Defeat) -> str:
    """One line: at which speed, what the best of ours scores, and what the rival does."""
    info, rival = summary.header.metrics[defeat.metric], defeat.rival
    theirs = f"{summary.label(rival)} {_shown(rival, defeat.metric, summary)}"
    if defeat.ours is None:
        return f"{info.label}, at {times(rival.speedup)}: none of ours is as fast; {theirs}"
    ours = f"{_shown(defeat.ours, defeat.metric, summary)} ({summary.label(defeat.ours)}, {times(defeat.ours.speedup)})"
    return f"{info.label}, at {times(rival.speedup)}: the best of ours scores {ours}, {theirs}"


def _shown(row: Row, name: str, summary: Summary) -> str:
    return quality_text(row.quality[name], summary.header.metrics[name])


def caption(summary: Summary) -> str:
    header = summary.header
    return (
        f"{header.model}, {header.hardware}. Faster: median of the paired wall-clock ratios to the full run of "
        f"{header.full_steps} steps, quartiles in brackets. Quality: mean ± standard error over the "
        f"{len(summary.pairs)} pictures that all settings without a failure have. Bold: nothing measured is both as "
        "fast and as good."
    )


def by_speed(summary: Summary) -> list[Row]:
    """The rows from slow to fast; those without a time last."""
    return sorted(summary.rows, key=lambda row: (math.isnan(row.speedup), row.speedup))


def partial(row: Row) -> str:
    """A mark for a row that lacks some of the pictures compared, and so is on no front."""
    return "" if row.comparable else f" (only {row.pictures} pictures)"


def speed(row: Row) -> str:
    return times(row.speedup) + (f" ({row.low:.2f} to {row.high:.2f})" if row.timings > 1 else "")


def times(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{ratio:.2f}×"


def quality_text(value: Quality | None, info: MetricInfo) -> str:
    """ "31.2 ± 0.4 dB"; empty for what is not known."""
    if value is None:
        return ""
    digits = 1 if info.unit or abs(value.mean) >= 10 else 3
    spread = "" if math.isnan(value.error) else f" ± {value.error:.{digits}f}"
    return f"{value.mean:.{digits}f}{spread} {info.unit}".strip()


def escape_cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _title(info: MetricInfo) -> str:
    return f"{info.label} {'↑' if info.higher else '↓'}"


def _plain(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.6g}"
