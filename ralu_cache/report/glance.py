"""An accelerated pipeline at a glance: whether it is on, with what, and what its last call did; a line, or HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from ralu_cache.report.record import RunRecord, stage_kind
from ralu_cache.report.steps import StepRecord

BAR = 36  # pixels, of a step that computes all tokens


@dataclass(frozen=True)
class Glance:
    """pipeline: its class's name, None once it is gone. settings: those that `accelerate` was given.

    report: of the latest call; None before the first.
    """

    pipeline: str | None
    enabled: bool
    settings: Mapping[str, Any]
    report: RunRecord | None

    @property
    def state(self) -> str:
        """ "on" or why not."""
        if self.pipeline is None:
            return "its pipeline is gone"
        return "on" if self.enabled else "off, the pipeline is stock"

    @property
    def chosen(self) -> str:
        """The settings as `accelerate` takes them."""
        given = [f"{name}={value!r}" for name, value in self.settings.items() if value is not None]
        return ", ".join(given) or "nothing chosen"

    @property
    def last(self) -> str:
        """The latest call in a few figures."""
        report = self.report
        if report is None:
            return "no call yet"
        gain = f", {report.flop_ratio:.2f}x fewer FLOPs" if math.isfinite(report.flop_ratio) else ""
        cut = "" if report.completed else ", cut short"
        return f"{len(report.steps)} steps in {report.seconds:.2f} s{gain}{cut}"

    def text(self) -> str:
        return f"<Acceleration of {self.pipeline or 'a pipeline'}: {self.chosen}; {self.state}; last call: {self.last}>"

    def html(self) -> str:
        """The same, and a bar for each step: as high as its share of the tokens, hollow where they were reused."""
        dot = "#2a9d8f" if self.enabled and self.pipeline else "#9aa0ac"
        head = f'<span style="color:{dot}">&#9679;</span> <b>{escape(self.pipeline or "?")}</b> {escape(self.state)}'
        lines = [head, f"<code>{escape(self.chosen)}</code>", f"last call: {escape(self.last)}"]
        bars = "" if self.report is None else _bars(self.report)
        return f'<div style="font-family:sans-serif;line-height:1.6">{"<br>".join(lines)}{bars}</div>'


def _bars(report: RunRecord) -> str:
    full = report.size[0] * report.size[1]
    bars = "".join(_bar(step, step.tokens / full if full else 1.0, report) for step in report.steps)
    return f'<div style="display:flex;align-items:flex-end;gap:2px;height:{BAR}px;margin-top:6px">{bars}</div>'


def _bar(step: StepRecord, share: float, report: RunRecord) -> str:
    from ralu_cache.report.figures import COLOURS

    colour = COLOURS[stage_kind(step.tokens, report.size)]
    done = 100 * (1 - step.reused_share)
    fill = f"linear-gradient(to top, {colour} {done:.0f}%, transparent {done:.0f}%)"
    told = f"step {step.index + 1}: sigma {step.sigma:.3f}, {step.tokens} tokens, {done:.0f}% computed"
    look = f"width:10px;height:{max(share, 0.1) * BAR:.0f}px;border:1px solid {colour};background:{fill}"
    return f'<div title="{told}" style="{look}"></div>'
