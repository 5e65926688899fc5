"""Do the tests of the pure rooms notice small changes that a machine makes? Writes those that none noticed.

    python -m benchmarks.mutation [--rooms history temporal] [--each 12] [--minutes 25] [--only FILE ...]

cosmic-ray's operators make the changes, one at one place; of each file a sample is tried, in a copy of the project,
with the tests of that file alone: those that import it or bear its name, less the slow ones. Stopped, or out of time,
it goes on where it was: what was found lies in out/mutation/. What survived is tried again once the tests have changed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.mutation.changes import Change

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 5.0  # times what the tests take without a change, after which a change counts as noticed: it hangs
QUICK = ("-m", "not slow")


@dataclass(frozen=True)
class Found:
    """caught: the test that noticed, or why none could run; None for a survivor. tests: their digest."""

    caught: str | None
    tests: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rooms", nargs="+", default=["history", "temporal"], metavar="ROOM", help="%(default)s")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="these files of the rooms; writes no page")
    parser.add_argument("--each", type=int, default=12, metavar="N", help="changes a file (%(default)s); 0 for all")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which it stops, to go on (%(default)s)")
    parser.add_argument("--log", type=Path, default=ROOT / "out" / "mutation" / "found.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutation.md")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the models are tiny

    from benchmarks.mutation.changes import changes, sample

    files = sorted(
        str(path.relative_to(ROOT)) for room in options.rooms for path in (ROOT / "ralu_cache" / room).glob("*.py")
    )
    if unknown := set(options.only or ()).difference(files):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    every = {file: list(changes(ROOT, file)) for file in options.only or files}
    drawn = {file: sample(found, options.each or len(found)) for file, found in every.items() if found}
    tests = {file: tests_of(ROOT, file) for file in drawn}
    known = read(options.log)
    left = {file: [one for one in chosen if not settled(one, known, tests[file])] for file, chosen in drawn.items()}
    options.log.parent.mkdir(parents=True, exist_ok=True)
    try_all(left, tests, known, options.log, time.monotonic() + 60 * options.minutes)
    text = page(every, drawn, tests, known)
    if options.only is None:
        options.out.write_text(text)
        print(f"wrote {options.out}")
    else:
        print(text)
    return 0


def tests_of(root: Path, file: str) -> tuple[str, ...]:
    """The files of tests that import this file, or are named after it."""
    module = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    room, _, name = module.removeprefix("ralu_cache.").partition(".")
    named = {f"tests/test_{name}.py", f"tests/test_{room}_{name}.py"}
    paths = sorted((root / "tests").glob("test_*.py"))
    return tuple(
        str(path.relative_to(root)) for path in paths
        if str(path.relative_to(root)) in named or module in imported(path.read_text())
    )  # fmt: skip


def imported(source: str) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def digest(tests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join((ROOT / name).read_text() for name in tests).encode()).hexdigest()[:16]


def settled(change: Change, known: Mapping[str, Found], tests: Sequence[str]) -> bool:
    """Noticed, or tried with these very tests."""
    found = known.get(change.key)
    return found is not None and (found.caught is not None or found.tests == digest(tests))


def read(log: Path) -> dict[str, Found]:
    """What earlier runs found; of a change that was tried again the latest."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {entry.pop("key"): Found(**entry) for entry in map(json.loads, lines)}


def try_all(
    left: Mapping[str, Sequence[Change]], tests: Mapping[str, Sequence[str]], known: dict[str, Found], log: Path,
    end: float,
) -> None:  # fmt: skip
    """Try what is left, file by file, and add it to `known` and to the log, until `end` (of the monotonic clock)."""
    from benchmarks.mutants.runner import copy_project, run_tests, warm_up

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_project(ROOT, tree)
        warm_up()
        seconds = {}
        for name in sorted({name for file, chosen in left.items() if chosen for name in tests[file]}):
            if time.monotonic() < end:
                whole = run_tests(tree, [*QUICK, name], compiled=True)
                if whole.caught is not None:
                    raise RuntimeError(f"{whole.caught} fails without any change")
                seconds[name] = whole.seconds
        for file, chosen in left.items():
            used = sorted(seconds.keys() & set(tests[file]), key=lambda name: seconds[name])
            for change in chosen:
                if time.monotonic() >= end or set(used) != set(tests[file]):
                    return
                caught = noticed_by(tree, change, used, PATIENCE * sum(seconds[name] for name in used))
                known[change.key] = Found(caught, digest(tests[file]))
                with log.open("a") as lines:
                    lines.write(json.dumps({"key": change.key, **vars(known[change.key])}) + "\n")
                print(f"{file}:{change.line} {change.operator}: {caught or 'SURVIVED'}", flush=True)


def noticed_by(tree: Path, change: Change, tests: Sequence[str], limit: float) -> str | None:
    """The test that fails with the change in the copy at `tree`, or why none could run; None if all pass."""
    from benchmarks.mutants.runner import NoResult, run_tests

    file = tree / change.file
    before = file.read_text()
    file.write_text(change.code)
    try:
        return run_tests(tree, [*QUICK, *tests], limit=limit).caught
    except NoResult as error:
        return str(error).splitlines()[0]
    finally:
        file.write_text(before)


def page(
    every: Mapping[str, Sequence[Change]], drawn: Mapping[str, Sequence[Change]], tests: Mapping[str, Sequence[str]],
    known: Mapping[str, Found],
) -> str:  # fmt: skip
    """What was tried of each file and with which tests, and all that survived."""
    tried = {file: [one for one in chosen if one.key in known] for file, chosen in drawn.items()}
    alive = {file: [one for one in chosen if known[one.key].caught is None] for file, chosen in tried.items()}
    counts = [sum(map(len, table.values())) for table in (every, drawn, tried, alive)]
    lines = [
        "# Changes by a machine",
        "",
        "Written by `python -m benchmarks.mutation`: changes that cosmic-ray's operators make in the pure rooms, "
        "one at a time, and whether the tests of the changed file (those that import it or bear its name, less slow "
        "ones) notice. What survives lacks a test, or makes no difference that matters.",
        "",
        f"Of {counts[0]} changes {counts[1]} were drawn at random, file by file, and {counts[2]} tried; "
        f"{counts[2] - counts[3]} were noticed, **{counts[3]} survived**.",
        "",
        "| file | changes | tried | survived | tests |",
        "|---|---:|---:|---:|---|",
        *(
            f"| `{file}` | {len(every[file])} | {len(tried[file])} | {len(alive[file])} | "
            f"{', '.join(name.removeprefix('tests/test_').removesuffix('.py') for name in tests[file])} |"
            for file in drawn
        ),
    ]
    for file, survivors in alive.items():
        lines += ["", f"## `{file}`", ""] if survivors else []
        lines += [f"- line {one.line}: `{one.old}` became `{one.new}`" for one in sorted(survivors, key=by_line)]
    return "\n".join(lines) + "\n"


def by_line(change: Change) -> int:
    return change.line


if __name__ == "__main__":
    sys.exit(main())
