"""The progress bar of a pipeline that does not count the steps it is given, but those it asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ralu_cache.run import Run


class TrueProgress:
    """While installed, `pipe.progress_bar(total=...)` counts the steps of the run under way."""

    def __init__(self, pipe: Any, current: Callable[[], Run | None]) -> None:
        self._pipe, self._current = pipe, current
        self._stock = pipe.progress_bar
        self._overridden = "progress_bar" in vars(pipe)
        pipe.progress_bar = self.progress_bar

    def remove(self) -> None:
        if vars(self._pipe).get("progress_bar") != self.progress_bar:  # someone else's by now
            return
        if self._overridden:
            self._pipe.progress_bar = self._stock
        else:
            del self._pipe.progress_bar

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """As `DiffusionPipeline.progress_bar`; an update goes to where the run stands, however often it is called."""
        run = self._current()
        if run is None or total is None:
            return self._stock(iterable, total)
        bar = self._stock(total=len(run.places) - run.index)
        advance, shown = bar.update, run.index

        def update(n: int = 1) -> None:
            nonlocal shown
            advance(run.index - shown)
            shown = run.index

        bar.update = update
        return bar
