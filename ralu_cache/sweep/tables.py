"""The summary of a sweep as CSV and as Markdown, and the sentences that stand in it and on the page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from ralu_cache.quality.base import MetricInfo
from ralu_cache.report.table import Bold, Table, escape_cell
from ralu_cache.sweep.groups import LOOKS
from ralu_cache.sweep.loss import DROP, fastest_within, gain_of_both, loss_metric
from ralu_cache.sweep.rivals import ERRORS, Defeat, defeats
from ralu_cache.sweep.summary import Quality, Row, Summary, steps_asked

DEFEATS_TITLE = "Where others beat this library"
UNKNOWN = Quality(math.nan)


def csv_table(summary: Summary) -> str:
    """One line for each setting, plain numbers; what is not known is empty."""
    names = list(summary.header.metrics)
    titles = ["method", "family", "steps", "height", "width", "speedup", "speedup_q1", "speedup_q3", "timings",
              "flop_ratio", "pictures"]  # fmt: skip
    titles += [title for name in names for title in (name, f"{name}_standard_error")]
    return _csv([*titles, "failures", "error"], (_csv_line(row, names) for row in summary.rows))


def _csv_line(row: Row, metrics: Sequence[str]) -> list[object]:
    at, values = row.setting, [row.quality.get(name, UNKNOWN) for name in metrics]
    return [
        at.method, row.family, steps_asked(at), at.height, at.width, row.speedup, row.low, row.high, row.timings,
        row.flop_ratio, row.pictures, *(number for value in values for number in (value.mean, value.error)),
        row.failures, row.error or "",
    ]  # fmt: skip


def loss_csv(summary: Summary) -> str:
    """Speed at a given loss: one line for each size and group; empty where a group has nothing that keeps it."""
    titles = ["metric", "drop", "height", "width", "group", "method", "steps", "speedup", "value"]
    if (name := loss_metric(summary)) is None:
        return _csv(titles, [])
    lines = []
    for size in summary.sizes:
        for group, row in (fastest_within(summary, size, name) or {}).items():
            found: list[object] = ["", "", "", ""]
            if row is not None:
                found = [row.setting.method, steps_asked(row.setting), row.speedup, row.quality[name].mean]
            lines.append([name, DROP, *size, group, *found])
    return _csv(titles, lines)


def _csv(titles: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Real numbers to six digits, nan as nothing."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(titles)
    for line in lines:
        writer.writerow(("" if math.isnan(v) else f"{v:.6g}") if isinstance(v, float) else v for v in line)
    return file.getvalue()


def markdown_table(summary: Summary) -> str:
    """The settings by speed, in bold what is on a metric's front; below it how it was measured."""
    parts = [settings_table(summary).markdown(), caption(summary)]
    if (losses := loss_table(summary)) is not None:
        parts += [f"## {loss_title(summary)}", losses.markdown()]
    beaten = [f"- {escape_cell(sentence(summary, defeat))}" for defeat in all_defeats(summary)]
    parts += [f"## {DEFEATS_TITLE}", defeats_note(summary), "\n".join(beaten)]
    if failed := failures(summary):
        parts += ["## Failures", "\n".join(f"- {escape_cell(text)}" for text in failed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def settings_table(summary: Summary) -> Table:
    """A row for each setting, by speed; bold what is on a metric's front."""
    metrics = summary.header.metrics
    fronts = {name: summary.front(name) for name in metrics}
    titles = ["method", "steps", "faster", "fewer FLOPs"]
    titles += [f"{info.label} {'↑' if info.higher else '↓'}" for info in metrics.values()]
    rows = []
    for row in summary.by_speed:
        cells = [summary.label(row) + partial(row), str(steps_asked(row.setting)), speed(row), times(row.flop_ratio)]
        texts = {name: quality_text(row.quality.get(name), info) for name, info in metrics.items()}
        rows.append([*cells, *(Bold(text) if row in fronts[name] else text for name, text in texts.items())])
    return Table(titles, rows)


def loss_title(summary: Summary) -> str:
    """Of `loss_table`; empty where there is none."""
    if (name := loss_metric(summary)) is None:
        return ""
    info = summary.header.metrics[name]
    unit = "points" if info.unit == "%" else info.unit
    return f"Speed at a loss of at most {f'{DROP:g} {unit}'.strip()} of {info.label}"


def loss_table(summary: Summary) -> Table | None:
    """For each size and group the fastest setting; after each size how much several parts gain over one.

    None where a loss makes no sense, see `loss_metric`.
    """
    if (name := loss_metric(summary)) is None:
        return None
    rows = []
    for height, width in summary.sizes:
        found, size = fastest_within(summary, (height, width), name) or {}, f"{width}x{height}"
        for group, row in found.items():
            faster, setting = "", "nothing measured keeps that"
            if row is not None:
                faster, setting = times(row.speedup), f"{summary.label(row)} ({_shown(row, name, summary)})"
            rows.append((size, LOOKS[group].title, faster, setting))
        gain = gain_of_both(found) if found else math.nan
        if not math.isnan(gain):
            rows.append((size, "stacked over the best of one alone", times(gain), ""))
    return Table(("size", "group", "faster", "setting"), rows, left=(0, 1, 3))


def all_defeats(summary: Summary) -> list[Defeat]:
    return [defeat for name in summary.plotted for defeat in defeats(summary, name)]


def defeats_note(summary: Summary) -> str:
    if not all_defeats(summary):
        return f"At no speed measured is a peer or plain step reduction better by more than {ERRORS} standard errors."
    return (
        f"Better than all of ours that are as fast, by more than {ERRORS} standard errors of the difference, paired by "
        "picture:"
    )


def sentence(summary: Summary, defeat: Defeat) -> str:
    """One line: at which speed, what the best of ours scores, and what the rival does."""
    info, rival = summary.header.metrics[defeat.metric], defeat.rival
    theirs = f"{summary.label(rival)} {_shown(rival, defeat.metric, summary)}"
    if defeat.ours is None:
        return f"{info.label}, at {times(rival.speedup)}: none of ours is as fast; {theirs}"
    ours = f"{_shown(defeat.ours, defeat.metric, summary)} ({summary.label(defeat.ours)}, {times(defeat.ours.speedup)})"
    return f"{info.label}, at {times(rival.speedup)}: the best of ours scores {ours}, {theirs}"


def failures(summary: Summary) -> list[str]:
    return [f"{summary.label(row)}: {row.failures} failed, {row.error}" for row in summary.rows if row.failures]


def caption(summary: Summary) -> str:
    header = summary.header
    return (
        f"{header.model}, {header.hardware}. Faster: median of the paired wall-clock ratios to the full run of "
        f"{header.full_steps} steps, quartiles in brackets. Quality: mean ± standard error over the "
        f"{len(summary.pairs)} pictures that all settings without a failure have. Bold: nothing measured is both as "
        "fast and as good."
    )


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


def _shown(row: Row, name: str, summary: Summary) -> str:
    return quality_text(row.quality[name], summary.header.metrics[name])
