"""Do the tests of the pure rooms notice small changes that a machine makes? Writes those that none noticed.

    python -m benchmarks.mutation [--rooms history temporal] [--each 12] [--minutes 25] [--only FILE ...]

cosmic-ray's operators make the changes, one at one place; of each file a sample is tried, in a copy of the project,
with those tests that execute the changed statement, the quickest first, until one fails. They are of the rooms' own
files of tests: those that bear the name of a module, or import one and draw no pictures (three that do count as the
rooms' own), less the slow ones; what they execute is recorded first. All files have a change each before one has a
second. Stopped, or out of time, it goes on where it was: what was found and recorded lies in out/mutation/. What
survived is tried again once the tests have changed.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.mutation.found import Found, append, read, settled
from benchmarks.mutation.reach import Reach, digest_of, recorded

if TYPE_CHECKING:
    from benchmarks.mutation.changes import Change

ROOT = Path(__file__).resolve().parents[2]
PATIENCE, START = 6.0, 60.0  # times what the tests took alone, and seconds for imports; then one that hangs is noticed
DRAWING = ("tests/test_layers.py", "tests/test_predictions.py", "tests/test_trend.py")  # yet of these rooms
PIPELINES = ("diffusers", "tests.pipelines", "tests.sparse_bench", "tests.surroundings", "tests.wan_pipelines")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rooms", nargs="+", default=["history", "temporal"], metavar="ROOM", help="%(default)s")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="these files of the rooms; writes no page")
    parser.add_argument("--each", type=int, default=12, metavar="N", help="changes a file (%(default)s); 0 for all")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which it stops, to go on (%(default)s)")
    parser.add_argument("--store", type=Path, default=ROOT / "out" / "mutation", help="what is gone on from")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutation.md")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the models are tiny

    from benchmarks.mutation.changes import Places
    from benchmarks.mutation.page import page

    files = sorted(
        str(path.relative_to(ROOT)) for room in options.rooms for path in (ROOT / "ralu_cache" / room).glob("*.py")
    )
    if unknown := set(options.only or ()).difference(files):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    places = {file: found for file in options.only or files if len(found := Places(ROOT, file))}
    drawn = {file: list(islice(found.changes(), options.each or None)) for file, found in places.items()}
    known = read(options.store / "found.jsonl")
    try_all(drawn, rooms_tests(ROOT, files), known, options.store, time.monotonic() + 60 * options.minutes)
    text = page({file: len(found) for file, found in places.items()}, drawn, known)
    if options.only is None:
        options.out.write_text(text)
        print(f"wrote {options.out}")
    else:
        print(text)
    return 0


def rooms_tests(root: Path, files: Sequence[str]) -> tuple[str, ...]:
    """The files of tests that bear the name of one of these files, or import one of them and draw no pictures."""
    modules = {".".join(Path(file).with_suffix("").parts).removesuffix(".__init__") for file in files}
    parts = [module.removeprefix("ralu_cache.").split(".") for module in modules]
    names = {f"test_{part}" for each in parts for part in (each[-1], "_".join(each))}
    found = []
    for path in sorted((root / "tests").glob("test_*.py")):
        uses, test = imported(path.read_text()), str(path.relative_to(root))
        draws = any(use.startswith(PIPELINES) for use in uses) and test not in DRAWING
        if path.stem in names or (modules & uses and not draws):
            found.append(test)
    return tuple(found)


def imported(source: str) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def try_all(
    drawn: Mapping[str, Sequence[Change]], tests: Sequence[str], known: dict[str, Found], store: Path, end: float
) -> None:
    """Try what is left, a change of each file in turn; what is found is added to `known` and to the log in `store`.

    end: of the monotonic clock, when no other change is begun.
    """
    from benchmarks.mutants.runner import copy_project, warm_up

    digest = digest_of(ROOT, tests)
    left = {file: [one for one in chosen if not settled(one, known, digest)] for file, chosen in drawn.items()}
    if not any(left.values()) or time.monotonic() >= end:
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_project(ROOT, tree)
        warm_up()
        reach = recorded(tree, list(drawn), tests, store / "reach.json", end - time.monotonic())
        print(f"{len(reach.seconds)} tests pass without a change", flush=True)
        for change in filter(None, chain.from_iterable(zip_longest(*left.values()))):
            if time.monotonic() >= end:
                return
            known[change.key] = Found(noticed_by(tree, change, reach), digest)
            append(store / "found.jsonl", change, known[change.key])
            caught = known[change.key].caught
            print(f"{change.file}:{change.line} {change.operator}: {caught or 'SURVIVED'}", flush=True)


def noticed_by(tree: Path, change: Change, reach: Reach) -> str | None:
    """The test that fails with the change in the copy at `tree`, or why none could run; None if none does."""
    from benchmarks.mutants.runner import NoResult, run_tests

    file = tree / change.file
    before = file.read_text()
    if not (asked := reach.of(change.file, before, change.line)):
        return None
    file.write_text(change.code)
    try:
        return run_tests(tree, asked, limit=START + PATIENCE * sum(reach.seconds[test] for test in asked)).caught
    except NoResult as error:
        return str(error).splitlines()[0]
    finally:
        file.write_text(before)


if __name__ == "__main__":
    sys.exit(main())
