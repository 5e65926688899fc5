"""The summary of a sweep as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import math

from ralu_cache.sweep.records import MetricInfo
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
    failed = [row for row in summary.rows if row.failures]
    lines += [f"- {escape_cell(summary.label(row))}: {row.failures} failed, {row.error}" for row in failed]
    return "\n".join(lines) + "\n"


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
    return "" if math.isnan(ratio) else f"{ratio:.2f}x"


def quality_text(value: Quality | None, info: MetricInfo) -> str:
    """ "31.2 ± 0.4 dB"; empty for what is not known."""
    if value is None:
        return ""
    digits = 1 if info.unit else 3
    spread = "" if math.isnan(value.error) else f" ± {value.error:.{digits}f}"
    return f"{value.mean:.{digits}f}{spread} {info.unit}".strip()


def escape_cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _title(info: MetricInfo) -> str:
    return f"{info.label} {'↑' if info.higher else '↓'}"


def _plain(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.6g}"
