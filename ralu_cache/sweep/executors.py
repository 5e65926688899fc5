"""Where the calls of a sweep run: in this process, or on the workers of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ralu_cache.sweep.engine import Bench, Task
from ralu_cache.sweep.records import Record


class Executor(Protocol):
    def __call__(self, todo: Sequence[Task], end: float | None) -> Iterator[Record]:
        """The records of all tasks as they come; none begins after the time `end` (of `time.monotonic`)."""


def run_here(make: Callable[[], Bench]) -> Executor:
    """One after the other, in this process."""

    def execute(todo: Sequence[Task], end: float | None) -> Iterator[Record]:
        bench = make()
        for batch, tasks in todo:
            for record in bench.run(batch, tasks):
                yield record
                if end is not None and time.monotonic() >= end:
                    return

    return execute


def run_on_ray(make: Callable[[], Bench], workers: int | None = None) -> Executor:
    """Whole batches on Ray's workers, each with a pipeline of its own from `make`, which is sent there.

    workers: how many; by default one for each GPU of the cluster, or each CPU if it has none. Timings of workers that
    share a machine disturb each other. Raises ImportError without Ray.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install 'ralu-cache[ray]'") from error

    class Worker:
        def __init__(self) -> None:
            self.bench = make()

        def run(self, task: Task) -> list[Record]:
            return list(self.bench.run(*task))

    def execute(todo: Sequence[Task], end: float | None) -> Iterator[Record]:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = min(workers or gpus or int(resources.get("CPU", 1)), max(len(todo), 1))
        remote = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1)(Worker)
        idle: list[Any] = [remote.remote() for _ in range(count)]
        waiting: list[Task] = list(todo)
        running: dict[Any, Any] = {}
        while (waiting and (end is None or time.monotonic() < end)) or running:
            while idle and waiting and (end is None or time.monotonic() < end):
                worker = idle.pop()
                running[worker.run.remote(waiting.pop(0))] = worker
            if not running:
                return
            (ready, *_), _ = ray.wait(list(running))
            idle.append(running.pop(ready))
            yield from ray.get(ready)

    return execute
