"""Planted faults: for each law of the library, small changes that break it, and the tests that must notice."""

from __future__ import annotations

from benchmarks.mutants.calls import CALLS
from benchmarks.mutants.fault import Mutant
from benchmarks.mutants.histories import HISTORIES
from benchmarks.mutants.predictions import PREDICTIONS
from benchmarks.mutants.settings import SETTINGS

GROUPS: dict[str, tuple[Mutant, ...]] = CALLS | SETTINGS | HISTORIES | PREDICTIONS
MUTANTS: tuple[Mutant, ...] = tuple(mutant for group in GROUPS.values() for mutant in group)
