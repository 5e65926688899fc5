"""What was found of a change, and the log that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.mutation.changes import Change


@dataclass(frozen=True)
class Found:
    """caught: the test that noticed, or why none could run; None for a survivor. tests: their digest."""

    caught: str | None
    tests: str


def settled(change: Change, known: Mapping[str, Found], digest: str) -> bool:
    """Noticed, or tried with tests of this digest."""
    found = known.get(change.key)
    return found is not None and (found.caught is not None or found.tests == digest)


def read(log: Path) -> dict[str, Found]:
    """What earlier runs found; of a change that was tried again the latest."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {entry.pop("key"): Found(**entry) for entry in map(json.loads, lines)}


def append(log: Path, change: Change, found: Found) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as lines:
        lines.write(json.dumps({"key": change.key, **vars(found)}) + "\n")
