"""Limits and ticks of the axes: speed on a logarithmic axis, quality on a linear one."""

from __future__ import annotations

import math
from collections.abc import Sequence

Range = tuple[float, float]


def speed_limits(ranges: Sequence[Range], margin: float = 0.06) -> Range:
    """What holds every (low, high) > 0 and 1, with a margin: a share of the logarithmic width."""
    low, high = linear_limits([(math.log2(low), math.log2(high)) for low, high in [*ranges, (1.0, 1.0)]], margin)
    return 2**low, 2**high


def linear_limits(ranges: Sequence[Range], margin: float = 0.06) -> Range:
    """What holds every (low, high), with a margin: a share of the width."""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    room = margin * ((high - low) or max(abs(high), 1.0))
    return low - room, high + room


def speed_ticks(low: float, high: float) -> list[float]:
    """Of ..., 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, ... those from low to high (both > 0)."""
    powers = range(math.floor(math.log2(low)) - 1, math.ceil(math.log2(high)) + 1)
    ticks = (head * 2.0**power for power in powers for head in (1, 1.5))
    return [tick for tick in ticks if low <= tick <= high]


def linear_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """At most `most` multiples of 1, 2, 2.5 or 5 times a power of ten, those from low to high."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(head * power for head in (1, 2, 2.5, 5, 10) if head * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
