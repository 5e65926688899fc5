"""A study's search on the workers of a Ray cluster: each has a pipeline of its own, all share storage and folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ralu_cache.sweep.engine import Outcome
from ralu_cache.sweep.executors import run_on_ray

if TYPE_CHECKING:
    from ralu_cache.tune.search import Search

EXECUTORS = ("local", "ray")
MANY = 10_000  # trials that a worker is given; the time ends them before
Trials = Sequence[tuple[None, bool]]


@dataclass(frozen=True)
class Trying:
    """What a worker does in place of a sweep's bench: trials of the study, each answered by its batch's number."""

    search: Search

    def run(self, batch: int, tasks: Trials) -> Iterator[Outcome]:
        """Until the sampler has nothing new to suggest."""
        for _ in tasks:
            if self.search.exhausted:
                return
            self.search.step()
            yield cast(Any, batch)


@dataclass(frozen=True)
class Workers:
    """make: a worker's search, on a pipeline of its own. count: of workers; None for one for each GPU or CPU."""

    make: Callable[[], Search]
    count: int | None = None

    def search(self, end: float, trials: int | None, told: Callable[[int], None]) -> None:
        """Runs trials until the time (monotonic), or their number, is over; told: called with the number behind it.

        A trial whose worker dies is given to another one, as in a study that was killed; so are those under way at the
        end, by the process that goes on. Raises ImportError without Ray, RuntimeError if no worker starts.
        """
        make, count = self.make, 0
        execute = run_on_ray(cast(Any, lambda: Trying(make())), self.count)
        given = [(number, [(None, False)] * MANY) for number in range(self.count or trials or MANY)]
        with closing(cast(Any, execute(cast(Any, given), end))) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Outcome):  # of a worker that died
                    continue
                count += 1
                told(count)
                if count == trials or time.monotonic() >= end:
                    return
