"""The study's page and plots."""

from __future__ import annotations

from pathlib import Path


def write(out: Path) -> None:
    """The page and the plots of a folder of measurements."""
