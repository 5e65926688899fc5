"""One self-contained HTML page of a sweep."""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path

from ralu_cache.sweep.pareto import LOOKS, front_rows, picture_files
from ralu_cache.sweep.pictures import CAPTIONS
from ralu_cache.sweep.recommend import default_metric
from ralu_cache.sweep.summary import Row, Summary
from ralu_cache.sweep.tables import by_speed, caption, partial, quality_text, speed, times

STYLE = """
:root{--ink:#262a33;--soft:#6d7380;--paper:#fbfaf7;--line:#dedbd3;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e6e4de;--soft:#9b9fa9;--paper:#17191e;--line:#343842}}
body{font:17px/1.6 Georgia,serif;color:var(--ink);background:var(--paper);max-width:62rem;
margin:0 auto;padding:2rem 1rem}
h1{font-weight:400;font-size:2rem;margin:0}h2{font-weight:400;margin-top:2.5rem}.soft{color:var(--soft);font-size:.9rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1.5rem}svg{width:100%}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
td,th{font:13px/1.4 system-ui,sans-serif;padding:.45rem .6rem;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}td:first-child,th:first-child{text-align:left}th{cursor:pointer;color:var(--soft)}.front{font-weight:700}
.dot{display:inline-block;width:.65em;height:.65em;border-radius:50%;margin-right:.5em}.strip{display:flex;gap:4px}
.strip{gap:10px}.shot{margin:0;flex:0 0 112px}.shot img{width:112px;height:112px;border-radius:4px}
.shot figcaption{font:10px/1.3 system-ui,sans-serif;color:var(--soft)}figure{margin:1rem 0}
"""
SORT = """
document.querySelectorAll('th').forEach((th,i)=>{let up=1;th.onclick=()=>{const body=document.querySelector('tbody');
const key=r=>r.cells[i].dataset.key;[...body.rows].sort((a,b)=>up*((key(a)-key(b))||key(a).localeCompare(key(b))))
.forEach(r=>body.append(r));up=-up}})
"""
WIDTH, HEIGHT, LEFT, TOP = 440, 280, 46, 16


def page(summary: Summary, pictures: Path) -> str:
    """The page as text. pictures: the folder with a folder of PNG files for each setting; it may be missing."""
    header = summary.header
    title = escape(f"How fast at which loss: {header.model}")
    legend = " ".join(
        f'<span><i class="dot" style="background:{look[0]}"></i>{name}</span>' for name, look in LOOKS.items()
    )
    plots = "".join(f"<figure>{plot}</figure>" for name in header.metrics if (plot := _plot(summary, name)))
    versions = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    call = ", ".join(f"{name}={value!r}" for name, value in header.call.items())
    failed = "".join(
        f"<li>{escape(summary.label(row))}: {row.failures} failed, {escape(row.error or '')}</li>"
        for row in summary.rows if row.failures
    )  # fmt: skip
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1>{_headline(summary)}<h2>Speed and quality</h2><p class=soft>{legend}</p>"
        f"<div class=plots>{plots}</div><h2>All settings</h2><div class=wide>{_table(summary)}</div>"
        f"<p class=soft>{escape(caption(summary))}</p>{_strips(summary, pictures)}<h2>Measured on</h2>"
        f"<p>{escape(header.hardware)}. {escape(versions)}. Call: {escape(call) or 'defaults'}.</p>"
        f"{f'<h2>Failures</h2><ul>{failed}</ul>' if failed else ''}<script>{SORT}</script></body></html>\n"
    )


def _headline(summary: Summary) -> str:
    if not summary.header.metrics:
        return ""
    name = default_metric(summary)
    info = summary.header.metrics[name]
    rows = [row for row in summary.front(name) if row.family != "full"]
    items = (
        f"<li><b>{times(row.speedup)}</b> with {escape(summary.label(row))}: {escape(info.label)} "
        f"{escape(quality_text(row.quality[name], info))}</li>" for row in rows
    )  # fmt: skip
    return f"<p>Nothing measured is both faster and better than these:</p><ul>{''.join(items)}</ul>"


def _table(summary: Summary) -> str:
    metrics = summary.header.metrics
    fronts = {name: summary.front(name) for name in metrics}
    titles = ["setting", "faster", "fewer FLOPs", *(info.label for info in metrics.values())]
    lines = []
    for row in by_speed(summary):
        dot = f'<i class="dot" style="background:{LOOKS[row.family][0]}"></i>'
        label = escape(summary.label(row) + partial(row))
        cells = f'<td data-key="{label}">{dot}{label}</td>' + _cell(row.speedup, speed(row))
        cells += _cell(row.flop_ratio, times(row.flop_ratio))
        for name, info in metrics.items():
            value = row.quality.get(name)
            cells += _cell(value.mean if value else math.nan, quality_text(value, info), row in fronts[name])
        lines.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(value: float, text: str, front: bool = False) -> str:
    key = -1e9 if math.isnan(value) else value
    return f'<td data-key="{key:.6g}"{" class=front" if front else ""}>{escape(text)}</td>'


def _plot(summary: Summary, name: str) -> str:
    """Speed-up to the right, the metric upwards, as SVG; a point tells its setting when hovered."""
    info, front = summary.header.metrics[name], summary.front(name)
    rows = [row for row in by_speed(summary) if name in row.quality and not math.isnan(row.speedup)]
    if not rows:
        return ""
    xs, ys = [row.speedup for row in rows], [row.quality[name].mean for row in rows]
    x_span, y_span = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0

    def place(row: Row) -> tuple[float, float]:
        x = LEFT + 12 + (row.speedup - min(xs)) / x_span * (WIDTH - LEFT - 30)
        return x, HEIGHT - 44 - (row.quality[name].mean - min(ys)) / y_span * (HEIGHT - TOP - 62)

    line = " ".join("{:.1f},{:.1f}".format(*place(row)) for row in rows if row.family in ("full", "steps"))
    parts = [f'<polyline points="{line}" fill="none" stroke="{LOOKS["steps"][0]}" stroke-dasharray="4 3"/>']
    for row in rows:
        x, y = place(row)
        ring = ' stroke="currentColor" stroke-width="2"' if row in front else ""
        told = escape(f"{summary.label(row)}: {times(row.speedup)}, {quality_text(row.quality[name], info)}")
        bar = row.quality[name].error / y_span * (HEIGHT - TOP - 62)
        if not math.isnan(bar):
            parts.append(f'<path d="M{x:.1f} {y - bar:.1f}V{y + bar:.1f}" stroke="{LOOKS[row.family][0]}"/>')
        look = f'r="5" fill="{LOOKS[row.family][0]}"{ring}'
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {look}><title>{told}</title></circle>')
    for step in range(5):
        x, y = LEFT + 12 + step / 4 * (WIDTH - LEFT - 30), HEIGHT - 44 - step / 4 * (HEIGHT - TOP - 62)
        parts.append(
            f'<text x="{x:.0f}" y="{HEIGHT - 22}" text-anchor="middle">{min(xs) + step / 4 * x_span:.1f}x</text>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{min(ys) + step / 4 * y_span:.3g}</text>')
    title = f"{info.label} {info.unit}" + ("" if info.higher else " (less is better)")
    parts.append(f'<text x="4" y="12">{escape(title)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


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
    for row in front_rows(summary):
        files = picture_files(row, pictures)
        images = "".join(_image(file, told[int(file.stem)]) for file in files if int(file.stem) < len(told))
        if images:
            about = f"{escape(summary.label(row))}, {times(row.speedup)}"
            lines.append(f"<figure><figcaption>{about}</figcaption><div class='wide strip'>{images}</div></figure>")
    return f"<h2>The same prompts along the front</h2>{''.join(lines)}" if lines else ""
