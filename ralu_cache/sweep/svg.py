"""A panel as inline SVG for the page; a point tells its setting when hovered."""

from __future__ import annotations

import math
from html import escape

from ralu_cache.sweep.groups import LOOKS, OTHERS, OURS, number_key, numbers
from ralu_cache.sweep.panel import Panel, Point
from ralu_cache.sweep.placing import RADII, place_labels
from ralu_cache.sweep.scales import linear_ticks, speed_ticks
from ralu_cache.sweep.summary import Summary
from ralu_cache.sweep.tables import quality_text, times

WIDTH, HEIGHT = 460, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 40, 40  # around the frame, in SVG pixels
FRAME = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
CORNERS = {"o": 24, "s": 4, "^": 3}  # of regular markers; the others are drawn by their own rule


def panel_svg(panel: Panel, summary: Summary) -> str:
    parts = [_axes(panel)]
    if panel.full is not None:
        y = _y(panel, panel.full)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{FRAME[0]}" stroke="{LOOKS["full"].colour}" stroke-dasharray="1 3"/>')
    for families, group, dash in ((OURS, "combined", ""), (OTHERS, "peer", "5 3")):
        front = [point for point in panel.points if point.row in panel.fronts[families]]
        line = " ".join(f"{_x(panel, point.x):.1f},{_y(panel, point.y):.1f}" for point in front)
        look = f'fill="none" stroke="{LOOKS[group].colour}" stroke-opacity=".6" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{line}" {look}/>')
    parts += [_point(panel, point, summary) for point in panel.points]
    parts.append(_numbers(panel, summary))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)}">{"".join(parts)}</svg>'


def sign_svg(family: str) -> str:
    """A group's mark for legends and tables."""
    look = LOOKS[family]
    path = f'<path d="{_marker(look.marker, 7, 7)}" fill="{look.colour}"/>'
    return f'<svg class=sign viewBox="0 0 14 14" aria-hidden="true">{path}</svg>'


def _x(panel: Panel, speed: float) -> float:
    low, high = map(math.log, panel.x)
    return LEFT + (math.log(speed) - low) / (high - low) * FRAME[0]


def _y(panel: Panel, value: float) -> float:
    low, high = panel.y
    return TOP + (high - value) / (high - low) * FRAME[1]


def _axes(panel: Panel) -> str:
    foot = TOP + FRAME[1]
    parts = [f'<path d="M{LEFT} {TOP}V{foot}H{LEFT + FRAME[0]}" fill="none" stroke="var(--soft)"/>']
    for tick in speed_ticks(*panel.x):
        x = _x(panel, tick)
        parts.append(f'<path d="M{x:.1f} {TOP}V{foot}" stroke="var(--line)" stroke-width=".6"/>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 15}" text-anchor="middle">{tick:g}×</text>')
    for tick in linear_ticks(*panel.y):
        y = _y(panel, tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{FRAME[0]}" stroke="var(--line)" stroke-width=".6"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    parts.append(
        f'<text x="{LEFT + FRAME[0]}" y="{HEIGHT - 6}" text-anchor="end">times faster than the full run</text>'
    )
    parts.append(f'<text x="4" y="13" style="font-size:13px;fill:var(--ink)">{escape(panel.title)}</text>')
    parts.append(f'<text x="4" y="29">{escape("; ".join(filter(None, (panel.quality, panel.note))))}</text>')
    return "".join(parts)


def _point(panel: Panel, point: Point, summary: Summary) -> str:
    look, row = LOOKS[point.row.family], point.row
    x, y = _x(panel, point.x), _y(panel, point.y)
    up, down = _y(panel, point.y + point.error), _y(panel, point.y - point.error)
    bars = f"M{x:.1f} {up:.1f}V{down:.1f}M{_x(panel, point.left):.1f} {y:.1f}H{_x(panel, point.right):.1f}"
    value = quality_text(row.quality[panel.metric], summary.header.metrics[panel.metric])
    told = f"{summary.label(row)}: {times(row.speedup)}, {value}"
    return (
        f'<path d="{bars}" stroke="{look.colour}" stroke-opacity=".5"/>'
        f'<path d="{_marker(look.marker, x, y)}" fill="{look.colour}" stroke="var(--paper)" stroke-width=".5">'
        f"<title>{escape(told)}</title></path>"
    )


def _numbers(panel: Panel, summary: Summary) -> str:
    told = numbers(summary)
    named = [point for point in panel.points if point.row.family != "full"]
    at = [(_x(panel, point.x) - LEFT, _y(panel, point.y) - TOP) for point in named]
    parts = []
    for point, (x, y), (px, py) in zip(named, at, place_labels(at, (13, 10), FRAME), strict=True):
        weight = ";font-weight:700" if point.row in panel.front else ""
        style = f'style="font-size:9.5px;fill:{LOOKS[point.row.family].colour}{weight}"'
        line = f"M{LEFT + x:.1f} {TOP + y:.1f}L{LEFT + px:.1f} {TOP + py:.1f}"
        if math.dist((x, y), (px, py)) > RADII[0] + 1:
            parts.append(f'<path d="{line}" stroke="var(--soft)" stroke-width=".4"/>')
        number = told[number_key(point.row)]
        parts.append(f'<text x="{LEFT + px:.1f}" y="{TOP + py + 3.5:.1f}" text-anchor="middle" {style}>{number}</text>')
    return "".join(parts)


def _marker(sign: str, x: float, y: float, radius: float = 5.0) -> str:
    """The SVG path of one of the markers of `LOOKS` around (x, y)."""
    if sign in CORNERS:
        turn = math.pi / 4 if sign == "s" else -math.pi / 2
        lengths = [radius * 1.15] * CORNERS[sign]
    else:
        turn = math.pi / 4 if sign == "X" else -math.pi / 2
        lengths = {
            "D": [radius * 1.2] * 4,
            "X": [radius * 1.3, radius * 0.5] * 4,
            "*": [radius * 1.2, radius * 0.5] * 5,
        }[sign]
    angles = [turn + 2 * math.pi * index / len(lengths) for index in range(len(lengths))]
    corners = (f"{x + r * math.cos(a):.1f} {y + r * math.sin(a):.1f}" for r, a in zip(lengths, angles, strict=True))
    return f"M{'L'.join(corners)}Z"
