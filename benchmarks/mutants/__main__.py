"""Do the tests notice what breaks a law? Faults are planted one by one in a copy of the project.

    python -m benchmarks.mutants [--only NAME] [--out benchmarks/results/mutants.md]

Runs the tests that must notice each, in a copy of the tracked files; first all of them without a fault, which must
pass. Writes a table; the exit code is 1 if a fault goes unnoticed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", metavar="NAME", action="append", help="this mutant alone, or these; writes no table")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.md")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the models are tiny

    from benchmarks.mutants import GROUPS, MUTANTS, Mutant
    from benchmarks.mutants.runner import Outcome, copy_project, run_tests, warm_up

    names = [mutant.name for mutant in MUTANTS]
    if unknown := set(options.only or ()).difference(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [mutant for mutant in MUTANTS if options.only is None or mutant.name in options.only]
    found: dict[Mutant, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_project(ROOT, tree)
        warm_up()
        whole = run_tests(tree, sorted({test for mutant in chosen for test in mutant.tests}), compiled=True)
        if whole.caught is not None:
            raise RuntimeError(f"{whole.caught} fails without any fault")
        print(f"without a fault all pass, in {whole.seconds:.0f} s", flush=True)
        for mutant in chosen:
            with mutant.planted(tree):
                found[mutant] = run_tests(tree, mutant.tests)
            outcome = found[mutant]
            print(f"{mutant.name}: {outcome.caught or 'SURVIVED'} ({outcome.seconds:.1f} s)", flush=True)
    survivors = [mutant.name for mutant, outcome in found.items() if outcome.caught is None]
    if options.only is None:
        options.out.write_text(page(GROUPS, found, whole.seconds))
        print(f"wrote {options.out}")
    print(f"{len(found) - len(survivors)} of {len(found)} noticed" + "".join(f"; not {name}" for name in survivors))
    return 1 if survivors else 0


def page(groups: dict, found: dict, whole: float) -> str:
    """The table of all mutants, by what they break."""
    noticed = sum(outcome.caught is not None for outcome in found.values())
    seconds = whole + sum(outcome.seconds for outcome in found.values())
    lines = [
        "# Planted faults",
        "",
        "Written by `python -m benchmarks.mutants`: each law, a small change of one file that breaks it, and the test "
        "that noticed. Seconds on one thread of a CPU, with the time that the library and the tests take to import.",
        "",
        f"{noticed} of {len(found)} were noticed, in {seconds:.0f} s; without a fault all these tests pass.",
    ]
    for group, mutants in groups.items():
        lines += ["", f"## {group}", "", "| law | fault | where | noticed by | s |", "|---|---|---|---|---:|"]
        for mutant in mutants:
            outcome = found[mutant]
            test = f"`{outcome.caught}`" if outcome.caught else "**nothing**"
            lines.append(
                f"| {mutant.law} | {mutant.name} | `{mutant.file}` | {test.replace('|', '&#124;')} "
                f"| {outcome.seconds:.1f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
