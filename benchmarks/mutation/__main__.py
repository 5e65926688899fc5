"""Do the tests of the pure rooms notice small changes that a machine makes? Writes those that none noticed.

    python -m benchmarks.mutation [--rooms history temporal] [--each 12] [--minutes 25] [--only FILE ...]

cosmic-ray's operators make the changes, one at one place; of each file a sample is tried, in a copy of the project,
with the tests of that file alone: those that bear its name, or import it and draw no pictures (those that do only where
there are no others), less the slow ones. All files have a change each before one has a second. Stopped, or out of time,
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
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.mutation.changes import Change

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("-m", "not slow")
PATIENCE = 4.0  # times what all tests take without a change, after which one that hangs counts as noticed
PIPELINES = ("diffusers", "tests.pipelines", "tests.sparse_bench", "tests.surroundings", "tests.wan_pipelines")


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
    tests = {file: its_tests(ROOT, file) for file in drawn}
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


def its_tests(root: Path, file: str) -> tuple[str, ...]:
    """The files of tests that bear this file's name, then those that import it without drawing, else all that do."""
    module = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    room, _, name = module.removeprefix("ralu_cache.").partition(".")
    own, pure, drawing = [], [], []
    for path in sorted((root / "tests").glob("test_*.py")):
        uses, test = imported(path.read_text()), str(path.relative_to(root))
        if path.stem in (f"test_{name}", f"test_{room}_{name}"):
            own.append(test)
        elif module in uses:
            (drawing if any(use.startswith(PIPELINES) for use in uses) else pure).append(test)
    return tuple(own + pure or drawing)


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
    """Try what is left, a change of each file in turn; what is found is added to `known` and to the log.

    end: of the monotonic clock, when no other change is begun.
    """
    from benchmarks.mutants.runner import copy_project, run_tests, warm_up

    if not any(left.values()) or time.monotonic() >= end:
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_project(ROOT, tree)
        warm_up()
        wanted = sorted({name for file, chosen in left.items() if chosen for name in tests[file]})
        whole = run_tests(tree, [*QUICK, *wanted], compiled=True, limit=end - time.monotonic())
        if whole.caught is not None:
            raise RuntimeError(f"{whole.caught} fails without any change")
        print(f"without a change all pass, in {whole.seconds:.0f} s", flush=True)
        for change in filter(None, chain.from_iterable(zip_longest(*left.values()))):
            used = tests[change.file]
            if not used:
                continue
            if time.monotonic() >= end:
                return
            known[change.key] = Found(noticed_by(tree, change, used, PATIENCE * whole.seconds), digest(used))
            with log.open("a") as lines:
                lines.write(json.dumps({"key": change.key, **vars(known[change.key])}) + "\n")
            caught = known[change.key].caught
            print(f"{change.file}:{change.line} {change.operator}: {caught or 'SURVIVED'}", flush=True)


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
        "one at a time, and whether the tests of the changed file (those that bear its name, or import it and draw no "
        "pictures; less slow ones) notice. What survives lacks a test, or makes no difference that matters.",
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
