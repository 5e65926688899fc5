"""One self-contained HTML page of a sweep."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ralu_cache.report.table import Table
from ralu_cache.sweep import tables
from ralu_cache.sweep.groups import LOOKS, number_key, numbers
from ralu_cache.sweep.pareto import LEGEND, sign_svg
from ralu_cache.sweep.pictures import Strip
from ralu_cache.sweep.summary import Summary

UNTIMED = "Nothing but the full run was both timed and judged, so there is nothing to plot."
HOW_TO_READ = (
    "Solid line: the front of ours; dashed: that of peers and plain steps. Numbers: those of the table below; hover "
    "over a point for its setting."
)


def page(summary: Summary, shown: Sequence[Strip], plots: Sequence[str]) -> str:
    """The page as text. shown: see `strips`. plots: SVG texts."""
    told, table = numbers(summary), tables.settings_table(summary)
    rows = zip(summary.by_speed, table.rows, strict=True)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("ralu_cache.sweep").joinpath("page.html.j2").read_text()
    )
    return template.render(
        header=summary.header,
        fronts=_fronts(summary),
        plots=plots,
        **(_legend(summary) if plots else {"signs": {}, "legend": UNTIMED}),
        loss_title=tables.loss_title(summary),
        loss=tables.loss_table(summary),
        defeats_title=tables.DEFEATS_TITLE,
        defeats_note=tables.defeats_note(summary),
        defeats=[tables.sentence(summary, defeat) for defeat in tables.all_defeats(summary)],
        titles=table.titles,
        rows=[(told.get(number_key(row), ""), row.family, cells) for row, cells in rows],
        caption=tables.caption(summary),
        strips=[(name, {told: _base64(file) for told, file in found.items()}) for name, found in shown],
        failures=tables.failures(summary),
    )


def _legend(summary: Summary) -> dict[str, Any]:
    """By group, its sign and title; and what else the plots show."""
    there = {row.family for row in summary.rows}
    signs = {name: (sign_svg(name), look.title) for name, look in LOOKS.items() if name in there}
    return {"signs": signs, "legend": f"{HOW_TO_READ} {LEGEND}"}


def _fronts(summary: Summary) -> list[tuple[str, Table]]:
    """For each size, its title (none if it is the only one) and the front of the metric that matters most."""
    if not summary.header.metrics:
        return []
    name = summary.main_metric
    info, found = summary.header.metrics[name], []
    for height, width in summary.sizes:
        alone = summary.at_size((height, width))
        rows = [
            (tables.times(row.speedup), alone.label(row), tables.quality_text(row.quality[name], info))
            for row in alone.front(name) if row.family != "full"
        ]  # fmt: skip
        title = f"{width}x{height} pixels" if len(summary.sizes) > 1 else ""
        found.append((title, Table(("faster", "setting", info.label), rows, left=(1,))))
    return found


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
