"""Where the calls of a sweep run: in this process, or on the workers of a Ray cluster."""

from __future__ import annotations

import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ralu_cache.sweep import contenders
from ralu_cache.sweep.engine import Bench, Outcome, Task
from ralu_cache.sweep.records import Batch, Record, Setting

STARTS = 2  # so often in a row a worker may fail to start before it is given up


class Executor(Protocol):
    def __call__(self, todo: Sequence[Task], end: float | None) -> Iterator[Outcome]:
        """The outcomes of all tasks as they come; none begins after the time `end` (of `time.monotonic`)."""


def run_here(make: Callable[[], Bench]) -> Executor:
    """One after the other, in this process."""

    def execute(todo: Sequence[Task], end: float | None) -> Iterator[Outcome]:
        bench = make()
        for batch, tasks in todo:
            for outcome in bench.run(batch, tasks):
                yield outcome
                if _over(end):
                    return

    return execute


def run_on_ray(make: Callable[[], Bench], workers: int | None = None) -> Executor:
    """Batches on Ray's workers, each with a pipeline of its own from `make`; every outcome is sent as it is ready.

    `make` and the registered contenders are sent to the workers; what they import must be importable there. A setting
    during which its worker dies is recorded as failed; a new worker goes on with the rest of its batch.
    workers: how many; by default one for each GPU of the cluster, or each CPU if it has none. Timings of workers that
    share a machine disturb each other. Raises ImportError without Ray, and RuntimeError if no worker starts.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install 'ralu-cache[ray]'") from error

    class Worker:
        def __init__(self, registered: Mapping[str, contenders.Contender]) -> None:
            contenders.CONTENDERS.update(registered)  # of the module in the worker: Ray copies what a class names
            self.bench = make()

        def run(self, batch: Batch, tasks: Sequence[tuple[Setting, bool]]) -> Iterator[Outcome | None]:
            yield None  # the worker has started: what fails from here on is the setting's fault
            yield from self.bench.run(batch, tasks)

    def execute(todo: Sequence[Task], end: float | None) -> Iterator[Outcome]:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        resources, registered = ray.cluster_resources(), dict(contenders.CONTENDERS)
        gpus = int(resources.get("GPU", 0))
        count = min(workers or gpus or int(resources.get("CPU", 1)), len(todo))
        remote = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1)(Worker)
        crew = _Crew(ray, lambda: remote.remote(registered), count, todo)
        try:
            while True:
                if not _over(end):
                    crew.hand_out()
                if not crew.jobs:
                    return
                job = crew.wait()
                if (outcome := crew.hear(job)) is not None:
                    yield outcome
                if _over(end):
                    crew.dismiss(job)
        finally:
            crew.dismiss_all()

    return execute


@dataclass
class _Job:
    """What one worker does: the stream of its answers, and the settings of the batch that it has not answered yet."""

    worker: Any
    stream: Any
    batch: Batch
    left: deque[tuple[Setting, bool]]
    begun: bool = False


class _Crew:
    """Ray's workers, their jobs, and the tasks that wait; a worker that dies is replaced by a new one from `hire`."""

    def __init__(self, ray: Any, hire: Callable[[], Any], count: int, todo: Sequence[Task]) -> None:
        self.ray, self.hire = ray, hire
        self.waiting = deque(todo)
        self.idle = [hire() for _ in range(count)]
        self.jobs: dict[Any, _Job] = {}  # by stream
        self.failed_starts = 0

    def hand_out(self) -> None:
        while self.idle and self.waiting:
            worker, (batch, tasks) = self.idle.pop(), self.waiting.popleft()
            stream = worker.run.remote(batch, tasks)
            self.jobs[stream] = _Job(worker, stream, batch, deque(tasks))

    def wait(self) -> _Job:
        """The job that has something to tell."""
        (stream, *_), _ = self.ray.wait(list(self.jobs))
        return self.jobs[stream]

    def hear(self, job: _Job) -> Outcome | None:
        """The job's next outcome, a failed one if its worker died; None if it began or ended.

        Raises RuntimeError when the last worker failed to start.
        """
        try:
            outcome: Outcome | None = self.ray.get(next(job.stream))
        except StopIteration:
            self.idle.append(self.jobs.pop(job.stream).worker)
            return None
        except self.ray.exceptions.RayError as error:
            return self._replace(job, error)
        if outcome is None:
            job.begun, self.failed_starts = True, 0
        else:
            job.left.popleft()
        return outcome

    def dismiss(self, job: _Job) -> None:
        if self.jobs.pop(job.stream, None) is not None:
            self.ray.kill(job.worker)

    def dismiss_all(self) -> None:
        for worker in [*self.idle, *(job.worker for job in self.jobs.values())]:
            self.ray.kill(worker)

    def _replace(self, job: _Job, error: Exception) -> Outcome | None:
        self.dismiss(job)
        failed = None
        if job.begun:
            setting, _ = job.left.popleft()
            message = textwrap.shorten(str(error), 500, placeholder=" ...")
            failed = Outcome(Record(setting, job.batch, error=f"{type(error).__name__}: {message}"))
        else:
            self.failed_starts += 1
        if job.left:
            self.waiting.appendleft((job.batch, list(job.left)))
        if self.failed_starts < STARTS:
            self.idle.append(self.hire())
        elif not self.jobs and not self.idle:
            why = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"no worker of Ray starts, {self.failed_starts} failed in a row: {why}") from error
        return failed


def _over(end: float | None) -> bool:
    return end is not None and time.monotonic() >= end
