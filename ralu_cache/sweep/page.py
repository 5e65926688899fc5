"""One self-contained HTML page of a sweep."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterable, Sequence
from html import escape
from pathlib import Path

from ralu_cache.sweep.groups import LOOKS, number_key, numbers
from ralu_cache.sweep.loss import loss_metric
from ralu_cache.sweep.panel import BARS, panels
from ralu_cache.sweep.pictures import CAPTIONS
from ralu_cache.sweep.recommend import at_size, default_metric
from ralu_cache.sweep.strips import picture_files, strip_rows
from ralu_cache.sweep.summary import Summary
from ralu_cache.sweep.svg import panel_svg, sign_svg
from ralu_cache.sweep.tables import (
    DEFEATS_TITLE,
    all_defeats,
    by_speed,
    caption,
    defeats_note,
    loss_cells,
    loss_title,
    partial,
    quality_text,
    sentence,
    speed,
    times,
)

STYLE = """
:root{--ink:#262a33;--soft:#6d7380;--paper:#fbfaf7;--line:#dedbd3;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e6e4de;--soft:#9b9fa9;--paper:#17191e;--line:#343842}}
body{font:17px/1.6 Georgia,serif;color:var(--ink);background:var(--paper);max-width:62rem;
margin:0 auto;padding:2rem 1rem}
h1{font-weight:400;font-size:2rem;margin:0}h2{font-weight:400;margin-top:2.5rem}
h3{font-weight:400;margin:1rem 0 0}.soft{color:var(--soft);font-size:.9rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1.5rem}.plots svg{width:100%}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
td,th{font:13px/1.4 system-ui,sans-serif;padding:.45rem .6rem;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}td:first-child,th:first-child{text-align:left}th{color:var(--soft)}.front{font-weight:700}
td:first-child,.text{white-space:normal;overflow-wrap:anywhere;text-align:left}
.sort td:first-child{min-width:13rem}
.sort th{cursor:pointer}table.small{width:auto}.sign{width:13px;height:13px;margin-right:.45em;vertical-align:-2px}
.legend span{margin-right:1.3em;white-space:nowrap}.no{display:inline-block;min-width:1.6em;color:var(--soft)}
.strip{display:flex;gap:4px}
.strip{gap:10px}.shot{margin:0;flex:0 0 112px}.shot img{width:112px;height:112px;border-radius:4px}
.shot figcaption{font:10px/1.3 system-ui,sans-serif;color:var(--soft)}figure{margin:1rem 0}
"""
SORT = """
document.querySelectorAll('.sort th').forEach((th,i)=>{let up=1;th.onclick=()=>{
const body=document.querySelector('.sort tbody'),key=r=>r.cells[i].dataset.key;
[...body.rows].sort((a,b)=>up*((key(a)-key(b))||key(a).localeCompare(key(b)))).forEach(r=>body.append(r));up=-up}})
"""


def page(summary: Summary, pictures: Path) -> str:
    """The page as text. pictures: the folder with a folder of PNG files for each setting; it may be missing."""
    header = summary.header
    title = escape(f"How fast at which loss: {header.model}")
    plots = "".join(f"<figure>{panel_svg(panel, summary)}</figure>" for panel in panels(summary))
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    call = ", ".join(f"{name}={value!r}" for name, value in header.call.items())
    failed = "".join(
        f"<li>{escape(summary.label(row))}: {row.failures} failed, {escape(row.error or '')}</li>"
        for row in summary.rows if row.failures
    )  # fmt: skip
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1>{_headline(summary)}<h2>Speed and quality</h2>{_legend(summary)}"
        f"<div class=plots>{plots}</div>{_loss(summary)}{_defeats(summary)}"
        f"<h2>All settings</h2><div class=wide>{_table(summary)}</div>"
        f"<p class=soft>{escape(caption(summary))}</p>{_strips(summary, pictures)}<h2>Measured on</h2>"
        f"<p>{escape(header.hardware)}. {escape(versions)}. Call: {escape(call) or 'defaults'}.</p>"
        f"{f'<h2>Failures</h2><ul>{failed}</ul>' if failed else ''}<script>{SORT}</script></body></html>\n"
    )


def _headline(summary: Summary) -> str:
    if not summary.header.metrics:
        return ""
    name = default_metric(summary)
    info = summary.header.metrics[name]
    told = [f"<p>Nothing measured is both faster and better in {escape(info.label)} than these:</p>"]
    for size in summary.sizes:
        alone = at_size(summary, size)
        rows = [row for row in alone.front(name) if row.family != "full"]
        lines = [(times(row.speedup), alone.label(row), quality_text(row.quality[name], info)) for row in rows]
        told.append(f"<h3>{size[1]}x{size[0]} pixels</h3>" if len(summary.sizes) > 1 else "")
        told.append(_small(("faster", "setting", info.label), lines, text=(1,)))
    return "".join(told)


def _legend(summary: Summary) -> str:
    there = {row.family for row in summary.rows}
    signs = (f"<span>{sign_svg(name)}{look.title}</span>" for name, look in LOOKS.items() if name in there)
    return (
        f"<p class='soft legend'>{''.join(signs)}</p>"
        "<p class=soft>Solid line: the front of ours; dashed: that of peers and plain steps; dotted: the full run. "
        "Numbers: those of the table below, bold on the front of all; hover over "
        f"a point for its setting. {BARS}</p>"
    )


def _loss(summary: Summary) -> str:
    if (name := loss_metric(summary)) is None or not (lines := loss_cells(summary, name)):
        return ""
    table = _small(("size", "group", "faster", "setting"), lines, text=(1, 3))
    return f"<h2>{escape(loss_title(summary.header.metrics[name]))}</h2>{table}"


def _defeats(summary: Summary) -> str:
    items = "".join(f"<li>{escape(sentence(summary, defeat))}</li>" for defeat in all_defeats(summary))
    return f"<h2>{DEFEATS_TITLE}</h2><p>{escape(defeats_note(summary))}</p>{f'<ul>{items}</ul>' if items else ''}"


def _small(titles: Sequence[str], lines: Iterable[Sequence[str]], text: Collection[int]) -> str:
    """A table that does not sort; text: the columns to set flush left."""
    flush = [" class=text" if index in text else "" for index in range(len(titles))]
    head = "".join(f"<th{look}>{escape(title)}</th>" for look, title in zip(flush, titles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{look}>{escape(cell)}</td>" for look, cell in zip(flush, line, strict=True)) + "</tr>"
        for line in lines
    )  # fmt: skip
    return f"<div class=wide><table class=small><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _table(summary: Summary) -> str:
    metrics = summary.header.metrics
    fronts = {name: summary.front(name) for name in metrics}
    titles = ["setting", "faster", "fewer FLOPs", *(info.label for info in metrics.values())]
    lines, told = [], numbers(summary)
    for row in by_speed(summary):
        number = f"<span class=no>{told.get(number_key(row), '')}</span>{sign_svg(row.family)}"
        label = escape(summary.label(row) + partial(row))
        cells = f'<td data-key="{label}">{number}{label}</td>' + _cell(row.speedup, speed(row))
        cells += _cell(row.flop_ratio, times(row.flop_ratio))
        for name, info in metrics.items():
            value = row.quality.get(name)
            cells += _cell(value.mean if value else math.nan, quality_text(value, info), row in fronts[name])
        lines.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f"<table class=sort><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(value: float, text: str, front: bool = False) -> str:
    key = -1e9 if math.isnan(value) else value
    return f'<td data-key="{key:.6g}"{" class=front" if front else ""}>{escape(text)}</td>'


def _image(file: Path, about: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure class=shot><img alt="{escape(about)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(about)}</figcaption></figure>"
    )


def _strips(summary: Summary, pictures: Path) -> str:
    captions = pictures / CAPTIONS
    told: list[str] = json.loads(captions.read_text()) if captions.exists() else []
    lines = []
    for row in strip_rows(summary):
        files = picture_files(row, pictures)
        images = "".join(_image(file, told[int(file.stem)]) for file in files if int(file.stem) < len(told))
        if images:
            about = f"{escape(summary.label(row))}, {times(row.speedup)}"
            lines.append(f"<figure><figcaption>{about}</figcaption><div class='wide strip'>{images}</div></figure>")
    return f"<h2>The same prompts along the front</h2>{''.join(lines)}" if lines else ""
