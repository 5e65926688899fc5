"""What was tried of each file, and all that survived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.mutation.changes import Change
from benchmarks.mutation.found import Found
from benchmarks.mutation.verdicts import VERDICTS
from ralu_cache.report.table import Table

HEAD = """# Changes by a machine

Written by `python -m benchmarks.mutation`: changes that cosmic-ray's operators make in the pure rooms, one at a time,
and whether a test notices. Asked are the tests that execute the changed statement, the quickest first, of those files
of tests that bear the name of a module of these rooms, or import one and draw no pictures, less the slow ones. What
survives lacks a test, or makes no difference that matters; which of the two is said.
"""


def page(places: Mapping[str, int], drawn: Mapping[str, Sequence[Change]], known: Mapping[str, Found]) -> str:
    """The Markdown page: at how many places of each file, what was drawn at random, and what was found."""
    tried = {file: [one for one in chosen if one.key in known] for file, chosen in drawn.items()}
    alive = {file: [one for one in chosen if known[one.key].caught is None] for file, chosen in tried.items()}
    counts = [sum(map(len, table.values())) for table in (drawn, tried, alive)]
    rows = [(f"`{file}`", str(places[file]), *(str(len(table[file])) for table in (tried, alive))) for file in drawn]
    lines = [
        HEAD,
        f"At {sum(places.values())} places {counts[0]} changes were drawn at random, file by file, and {counts[1]} "
        f"tried; {counts[1] - counts[2]} were noticed, **{counts[2]} survived**.",
        "",
        Table(("file", "places", "tried", "survived"), rows).markdown(),
    ]
    for file, survivors in alive.items():
        lines += ["", f"## `{file}`", ""] if survivors else []
        for one in sorted(survivors, key=lambda change: change.line):
            verdict = VERDICTS.get((file, one.old, one.new), "not looked at yet")
            lines.append(f"- line {one.line}: `{one.old}` became `{one.new}`: {verdict}")
    return "\n".join(lines) + "\n"
