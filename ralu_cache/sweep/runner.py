"""Running a sweep to its end, or to the end of its time, and going on with one that was cut short."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from ralu_cache.quality.base import Pictures
from ralu_cache.sweep.engine import Task, tasks_of
from ralu_cache.sweep.executors import Executor
from ralu_cache.sweep.records import Batch, Header, Setting, append, drop_cut_line, read_results, write_header

FILE = "results.jsonl"
Keep = Callable[[Setting, Batch, Pictures], None]


def run_sweep(
    out: Path, header: Header, settings: Sequence[Setting], batches: Sequence[Batch], executor: Executor,
    rounds: int = 3, seconds: float | None = None, retry: bool = False, keep: Keep | None = None,
) -> Path:  # fmt: skip
    """Runs what is not in `out`/results.jsonl yet, and returns the file.

    seconds: no new task begins after so long. retry: run again what failed before. keep: is given the pictures of
    every call that went well, in this process wherever they were made. Raises ValueError if the file that is there
    belongs to another sweep: other model, steps, arguments or metrics.
    """
    path, done = out / FILE, []
    if path.exists():
        drop_cut_line(path)
        there = read_results(path)
        _check_same(path, there.header, header)
        done = there.records
    else:
        write_header(path, header)
    todo: list[Task] = tasks_of(settings, batches, rounds, done, retry)
    total = len(settings) * len(batches)
    end = None if seconds is None else time.monotonic() + seconds
    missing = sum(len(tasks) for _, tasks in todo)
    with tqdm(total=total, initial=total - missing, desc="sweep", unit="call", smoothing=0.05) as bar:
        for outcome in executor(todo, end):
            record = outcome.record
            if keep is not None and outcome.pictures is not None:
                keep(record.setting, record.batch, outcome.pictures)
            append(path, [record])  # last: what is recorded is not run again
            bar.set_postfix_str(record.setting.method, refresh=False)
            bar.update()
    return path


def _check_same(path: Path, there: Header, now: Header) -> None:
    """Hardware and versions may differ between the parts of a sweep; what is measured may not."""
    before, after = asdict(there), asdict(now)
    for name in ("model", "full_steps", "call", "metrics"):
        if before[name] != after[name]:
            raise ValueError(
                f"{path} was begun with {name} {before[name]!r}, not {after[name]!r}; give another --out, or the same "
                "options as before"
            )
