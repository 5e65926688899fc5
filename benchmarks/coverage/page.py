"""docs/coverage.md, made from the results."""

from __future__ import annotations

import fnmatch
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from benchmarks.coverage.recipes import NOT_VISUAL
from benchmarks.coverage.survey import WORKS, Row
from ralu_cache.report.table import Table

PAGE = Path("docs/coverage.md")


def is_visual(row: Row) -> bool:
    """True for a pipeline that makes pictures or videos step by step, and not by pipelines of its own."""
    return bool(row.scheduler) and not any(fnmatch.fnmatchcase(row.pipeline, pattern) for pattern in NOT_VISUAL)


def ran(row: Row) -> bool:
    return row.runs == WORKS


def page(rows: Sequence[Row]) -> str:
    """The whole text."""
    rows = sorted(rows, key=lambda row: row.pipeline)
    parts = [_head(rows), _table([row for row in rows if ran(row)]), _reasons(rows), _left_out(rows)]
    return "\n\n".join(parts) + "\n"


def counts(rows: Sequence[Row]) -> str:
    """The sentence with the numbers."""
    running = [row for row in rows if ran(row)]
    visual = [row for row in running if is_visual(row)]
    first = [row for row in visual if row.tier1 == WORKS]
    second = {row.denoiser for row in running if row.tier2 == WORKS}
    third = [row for row in running if row.tier3 == WORKS]
    return (
        f"Of {len(rows)} pipeline classes of diffusers {importlib.metadata.version('diffusers')}, {len(running)} could "
        f"be built tiny and run here, {len(visual)} of them for pictures and videos; forecasts (tier 1) work with "
        f"{len(first)} of these ({len(first) / max(len(visual), 1):.0%}), reuse of blocks (tier 2) with "
        f"{sum(row.tier2 == WORKS for row in running)} pipelines of {len(second)} denoiser classes, spatial stages "
        f"(tier 3) with {len(third)}"
    )


def _head(rows: Sequence[Row]) -> str:
    return f"""# Which pipelines it works with

{counts(rows)}.

This page is written by `python -m benchmarks.coverage`: it builds a tiny pipeline of random weights of every class that
diffusers exports, by what its constructor asks for, and draws with it, stock and accelerated. **Tier 1**,
`temporal="forecast:3"`: finite, the denoiser called at the computed steps alone, every step computed and disabled
equal to stock bit for bit; "linear": on a loop over that scheduler with its options, a denoiser that is linear in the
noise level ends where stock does, to 3e-6 of the largest sample. **Tier 2**, `temporal="taylorseer:2"` and
`"teacache:0"`: finite, blocks left out, the same picture when drawn again, nothing reused and disabled equal to stock
bit for bit; "probe" where the blocks were found by running the model, "written" where an adapter tells them.
**Tier 3**, `spatial="ralu"` by a written adapter: finite, disabled equal to stock. A scheduler is the first that the
constructor's hint names, and DDIM where that is DDPM. None of it says what a picture of released weights looks like."""


def _table(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        how = ("written" if row.written else "probe") if row.tier2 == WORKS else "no"
        marks = [_mark(row.tier1), _mark(row.linear), how, _mark(row.tier3)]
        cells.append([_short(row.pipeline), row.denoiser, _short(row.scheduler), *marks])
    titles = ("pipeline", "denoiser", "scheduler", "tier 1", "linear", "tier 2", "tier 3")
    return Table(titles, cells, left=range(len(titles))).markdown()


def _reasons(rows: Sequence[Row]) -> str:
    """Why a tier is not there, for those that run."""
    lines = ["## What does not work, and why", ""]
    for row in rows:
        if not ran(row):
            continue
        exact = row.linear if row.tier1 == WORKS else WORKS  # what is refused is refused a loop, too
        third = row.tier3 if row.written else WORKS
        for kind, told in (("tier 1", row.tier1), ("linear", exact), ("tier 2", row.tier2), ("tier 3", third)):
            if told != WORKS:
                lines.append(f"- {_short(row.pipeline)}, {kind}: {_plain(told)}")
    return "\n".join(lines)


def _left_out(rows: Sequence[Row]) -> str:
    """Those of which nothing can be said."""
    lines = ["## What was not tried", "", "Stock did not run in this toy form, so nothing is known of these.", ""]
    lines += [f"- {_short(row.pipeline)}: {_plain(row.runs)}" for row in rows if not ran(row)]
    return "\n".join(lines)


def _mark(told: str) -> str:
    return "yes" if told == WORKS else "no"


def _short(name: str) -> str:
    return name.removesuffix("Pipeline").removesuffix("Scheduler")


def _plain(text: str) -> str:
    """A reason, cut where a list of everything accepted begins."""
    text = text.split("; accepted:")[0].split("; ralu_cache accelerates")[0].split("; what works here")[0]
    return text.replace("|", "/").replace("<", "").replace(">", "")[:200]
