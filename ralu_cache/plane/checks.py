"""Checks of settings: each raises ValueError with the name, the value and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def check_per_stage(name: str, setting: object, check: Callable[[Any], None]) -> None:
    """Raises ValueError for an empty tuple, and whatever `check` raises for the setting or each of a tuple's."""
    if setting == ():
        raise ValueError(f"{name} must be a number or one for each stage, got ()")
    for value in setting if isinstance(setting, tuple) else (setting,):
        check(value)


def check_number(name: str, value: object, low: float) -> None:
    """Raises ValueError unless `value` is a finite number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise ValueError(f"{name} must be a finite number of at least {low}, got {value!r}")


def check_share(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer of at least `low`, and at most `high` if given."""
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= (value if high is None else high)
    if not good:
        accepted = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {accepted}, got {value!r}")


def check_choice(name: str, value: object, accepted: tuple[object, ...]) -> None:
    """Raises ValueError unless `value` is one of `accepted`."""
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in accepted):
        raise ValueError(f"{name} must be one of {', '.join(repr(choice) for choice in accepted)}, got {value!r}")
