"""A test of over five seconds of processor time is marked as slow: `make quick` is for a person who is thinking."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

SLOW = 5.0  # seconds of processor time, which say the same on a busy machine
SECONDS = "processor seconds"  # the property of a report


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def unmarked(reports: Iterable[Any]) -> list[str]:
    """Those tests, by pytest's reports of them, that are slow and not marked as such."""
    found = []
    for report in reports:
        seconds = dict(report.user_properties).get(SECONDS, 0.0)
        if seconds > SLOW and "slow" not in report.keywords:
            found.append(f"{report.nodeid} took {seconds:.1f} s of processor time without the marker slow")
    return found
