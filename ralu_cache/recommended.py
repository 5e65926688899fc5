"""Shipped recommendations: for each model family, measured settings by their speed-up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Entry:
    """A measured setting: `accelerate`'s arguments, how many times faster they are, and where that was measured.

    steps: the `num_inference_steps` of the call; a spatial plan brings its own.
    """

    speedup: float
    spatial: str | None
    temporal: str | None
    measured: str
    steps: int
    guidance: str | None = None


def shipped(family: str) -> list[Entry]:
    """The family's entries, slow to fast; none for a family without any."""
    path = files("ralu_cache") / "recommendations" / f"{family}.json"
    entries = [Entry(**entry) for entry in json.loads(path.read_text())] if path.is_file() else []
    return sorted(entries, key=lambda entry: entry.speedup)


def for_speedup(entries: Sequence[Entry], speedup: str | float, family: str) -> Entry:
    """The slowest entry that is at least this fast: 4, 4.0 or "4x". Raises ValueError if there is none."""
    try:
        wanted = float(speedup.removesuffix("x") if isinstance(speedup, str) else speedup)
    except (TypeError, ValueError):
        wanted = math.nan
    if isinstance(speedup, bool) or not 0 < wanted < math.inf:
        raise ValueError(f'speedup must be a positive number such as 4 or "4x", got {speedup!r}')
    fitting = [entry for entry in entries if entry.speedup >= wanted]
    if not fitting:
        known = ", ".join(f"{entry.speedup:.2f}x" for entry in entries) or "none"
        raise ValueError(f"no recommendation for {family} is as fast as speedup={speedup!r}; there are: {known}")
    return min(fitting, key=lambda entry: entry.speedup)
