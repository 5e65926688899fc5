"""Do the tests notice what breaks a law? Faults are planted one by one in a copy of the project.

    python -m benchmarks.mutants [--only NAME] [--out benchmarks/results/mutants.md]

Runs the tests that must notice each, in a copy of the tracked files; first all of them without a fault, which must
pass. Writes a table; the exit code is 1 if a fault goes unnoticed. Stopped, it goes on where it was as long as nothing
of the library and its tests changes: what was noticed lies in out/mutants/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.mutants.fault import Mutant
    from benchmarks.mutants.runner import Outcome

ROOT = Path(__file__).resolve().parents[2]
WHOLE = "all without a fault"
LIMIT = 1800.0  # seconds for it


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="NAME", action="append", help="this mutant alone, or these; writes no table")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.md")
    parser.add_argument("--store", type=Path, default=ROOT / "out" / "mutants", help="what is gone on from")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the models are tiny

    from benchmarks.mutants import GROUPS, MUTANTS

    names = [mutant.name for mutant in MUTANTS]
    if unknown := set(options.only or ()).difference(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [mutant for mutant in MUTANTS if options.only is None or mutant.name in options.only]
    found = run(chosen, options.store / f"found_{state(ROOT)}.jsonl" if options.only is None else None)
    survivors = [mutant.name for mutant in chosen if found[mutant.name].caught is None]
    if options.only is None:
        options.out.write_text(page(GROUPS, found))
        print(f"wrote {options.out}")
    told = "".join(f"; not {name}" for name in survivors)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed{told}")
    return 1 if survivors else 0


def run(chosen: Sequence[Mutant], log: Path | None) -> dict[str, Outcome]:
    """What noticed each, by its name, and all their tests without a fault, by WHOLE. log: what is gone on from.

    Raises RuntimeError if one of the tests fails without a fault.
    """
    from benchmarks.mutants.runner import Outcome, copy_project, run_tests, warm_up

    lines = log.read_text().splitlines() if log is not None and log.exists() else []
    known = {entry.pop("name"): Outcome(**entry) for entry in map(json.loads, lines)}
    found = {name: outcome for name, outcome in known.items() if name == WHOLE or outcome.caught is not None}

    def note(name: str, outcome: Outcome) -> None:
        found[name] = outcome
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as written:
                told = {"name": name, "caught": outcome.caught, "seconds": outcome.seconds}
                written.write(json.dumps(told) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_project(ROOT, tree)
        warm_up()
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        if WHOLE in found:
            run_tests(tree, ["--collect-only", *tests], compiled=True, limit=LIMIT)
        else:
            whole = run_tests(tree, tests, compiled=True, limit=LIMIT)
            if whole.caught is not None:
                raise RuntimeError(f"{whole.caught} fails without any fault")
            note(WHOLE, whole)
        print(f"without a fault all pass, in {found[WHOLE].seconds:.0f} s", flush=True)
        for mutant in chosen:
            if mutant.name in found:
                continue
            with mutant.planted(tree):
                note(mutant.name, run_tests(tree, mutant.tests))
            outcome = found[mutant.name]
            print(f"{mutant.name}: {outcome.caught or 'SURVIVED'} ({outcome.seconds:.1f} s)", flush=True)
    return found


def state(root: Path) -> str:
    """A digest of the library, its tests and the faults."""
    rooms = ("adapters", "benchmarks/mutants", "ralu_cache", "tests")
    files = sorted(path for room in rooms for path in (root / room).rglob("*.py"))
    return hashlib.sha256(b"\n".join(path.read_bytes() for path in files)).hexdigest()[:16]


def page(groups: Mapping[str, Sequence[Mutant]], found: Mapping[str, Outcome]) -> str:
    """The table of all mutants, by what they break."""
    from ralu_cache.report.table import Table

    outcomes = {mutant.name: found[mutant.name] for mutants in groups.values() for mutant in mutants}
    noticed = sum(outcome.caught is not None for outcome in outcomes.values())
    seconds = sum(outcome.seconds for outcome in found.values())
    lines = [
        "# Planted faults",
        "",
        "Written by `python -m benchmarks.mutants`: each law, a small change of one file that breaks it, and the test "
        "that noticed. Seconds on one thread of a CPU, with the time that the library and the tests take to import.",
        "",
        f"{noticed} of {len(outcomes)} were noticed, in {seconds:.0f} s; without a fault all these tests pass.",
    ]
    for group, mutants in groups.items():
        rows = []
        for mutant in mutants:
            outcome = outcomes[mutant.name]
            test = f"`{outcome.caught}`" if outcome.caught else "**nothing**"
            rows.append((mutant.law, mutant.name, f"`{mutant.file}`", test, f"{outcome.seconds:.1f}"))
        titles = ("law", "fault", "where", "noticed by", "s")
        lines += ["", f"## {group}", "", Table(titles, rows, left=range(4)).markdown()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
