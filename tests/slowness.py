"""A test of over five seconds of processor time is marked as slow: `make quick` is for a person who is thinking.

One that isn't is told; it fails the run only from twelve on, for there are slower machines than that of the limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

SLOW, FAR_TOO_SLOW = 5.0, 12.0  # seconds of processor time, which say about the same on a busy machine
SECONDS = "processor seconds"  # the property of a report


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def unmarked(reports: Iterable[Any], limit: float = SLOW) -> list[str]:
    """Those tests, by pytest's reports of them, that are slower than the limit and not marked as slow."""
    found = []
    for report in reports:
        seconds = dict(report.user_properties).get(SECONDS, 0.0)
        if seconds > limit and "slow" not in report.keywords:
            found.append(f"{report.nodeid} took {seconds:.1f} s of processor time without the marker slow")
    return found
