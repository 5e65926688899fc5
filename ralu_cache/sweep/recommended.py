"""Recommendations: measured settings by their speed-up, as `ralu-cache recommend` writes them."""

from __future__ import annotations

from dataclasses import dataclass


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
    solver: str | None = None
