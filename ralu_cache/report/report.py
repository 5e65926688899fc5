"""The record of a run as its user meets it: it prints, saves and plots itself."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from ralu_cache.report.record import RunRecord
from ralu_cache.report.text import describe


class Report(RunRecord):
    """What an accelerated call did."""

    def __str__(self) -> str:
        return describe(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes `to_dict()` as JSON; makes the folder."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def plot(self, path: str | PathLike[str], image: Any = None) -> None:
        """Draws sigma and tokens over the steps and, with `image`, the refined regions over the finished pictures.

        Of a run that caches, the tokens are coloured by what was computed, recomputed and reused, above distances and
        ledger.

        image: a PIL image, a (Y, X, 3) array, or a list of them in the order of the batch.
        """
        from ralu_cache.report.timeline import save_run

        save_run(self, path, image)
