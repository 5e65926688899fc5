"""`python -m benchmarks.coverage`: what works with each pipeline class that diffusers exports; goes on where it was.

Each class is tried in a process of its own; the lines lie in benchmarks/results/coverage/,
the page is docs/coverage.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import multiprocessing
import resource
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers

from benchmarks.coverage.build import pipeline_classes
from benchmarks.coverage.page import PAGE, page
from benchmarks.coverage.survey import Row, survey

RESULTS = Path("benchmarks/results/coverage/coverage.jsonl")
MEMORY = 6 << 30  # bytes of address space for one class
PATIENCE = 300  # seconds for one class


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("names", nargs="*", default=["*"], help="pipeline classes, or patterns of them")
    parser.add_argument("--again", action="store_true", help="try those anew that are in the results already")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results that there are")
    options = parser.parse_args()
    rows = {row.pipeline: row for row in read(RESULTS)}
    if not options.page_only:
        quiet()
        for name in pipeline_classes():
            asked = any(fnmatch.fnmatchcase(name, pattern) for pattern in options.names)
            if asked and (name not in rows or options.again):
                row = rows[name] = in_a_process(name)
                write(RESULTS, rows)
                told = f"runs: {row.runs}; 1: {row.tier1}; 2: {row.tier2}; 3: {row.tier3}"
                print(f"{name:48} {told[:250]}", flush=True)
    PAGE.write_text(page(list(rows.values())))
    print(f"{PAGE}: {len(rows)} pipelines")


def quiet() -> None:
    """One thread, no network, and no warnings about tiny models."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    logging.getLogger("ralu_cache").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()


def in_a_process(name: str) -> Row:
    """The line of a class; one that takes too long or too much memory does not stop the others."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(PATIENCE) else Row(name, runs=f"not run: longer than {PATIENCE} s")
    except EOFError:
        found = Row(name, runs="not run: the process ended")
    process.kill()
    process.join()
    assert isinstance(found, Row)
    return found


def _send(name: str, connection: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    connection.send(survey(name))


def read(path: Path) -> list[Row]:
    """The lines that there are."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def write(path: Path, rows: dict[str, Row]) -> None:
    """All lines, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(rows[name])) for name in sorted(rows)]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
