"""The loop of a search: trials until the time, or their number, is over, with a bar that tells the best so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from ralu_cache.tune.front import front
from ralu_cache.tune.workers import Workers

logger = logging.getLogger("ralu_cache")
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n}/{total} s{postfix}"


def search_until(search: Any, end: float, trials: int | None, workers: Workers | None) -> bool:
    """Runs trials, at least one, until the time, or their number, is over; False if it was interrupted."""
    from ralu_cache.tune.search import measured

    begun, count = time.monotonic(), 0
    with tqdm(total=round(max(end - begun, 0)), desc="tune", unit="s", bar_format=BAR) as bar:

        def told(number: int) -> None:
            nonlocal count
            count = number
            bar.set_postfix_str(_best(measured(search.study), search.bench.loss.metric.info.unit), refresh=False)
            bar.update(min(round(time.monotonic() - begun), bar.total) - bar.n)

        try:
            if workers is not None:
                workers.search(end, trials, told)
                return True
            while not count or (time.monotonic() < end and count != trials and not search.exhausted):
                search.step()
                told(count + 1)
        except KeyboardInterrupt:
            logger.warning("interrupted after %d trials; what was found is kept, and the same command goes on", count)
            return False
    return True


def _best(trials: Sequence[Any], unit: str) -> str:
    """The best so far: three points of the front."""
    kept = front(trials)
    shown = kept if len(kept) < 3 else [kept[len(kept) // 4], kept[len(kept) // 2], kept[-1]]
    told = ", ".join(f"{1 / trial.share:.3g}x at {trial.loss:.3g}{unit}" for trial in shown)
    return f"{len(trials)} settings, best {told}" if told else f"{len(trials)} settings"
