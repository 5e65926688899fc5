"""Fewer cases than the whole matrix: rows in which every possible pair of choices meets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

Row = dict[str, Any]
Pair = frozenset[tuple[str, Any]]


def anything(**has: Any) -> bool:
    return True


def pairs(row: Row) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering(choices: Mapping[str, Sequence[Any]], possible: Callable[..., bool] = anything) -> list[Row]:
    """Rows of one choice each; possible: of the choices made so far, whether they go together."""

    def completed(row: Row, missing: set[Pair]) -> Row | None:
        """A possible row that has these choices and, greedily, many of the missing pairs; None if there is none.

        Of equals it takes the choice that was taken least.
        """
        if not possible(**row):
            return None
        free = next((name for name in choices if name not in row), None)
        if free is None:
            return {name: row[name] for name in choices}
        values = sorted(choices[free], key=lambda value: taken[free, value])
        longer = [row | {free: value} for value in values]
        for candidate in sorted(longer, key=lambda candidate: -len(pairs(candidate) & missing)):
            if found := completed(candidate, missing):
                return found
        return None

    every = [
        {one: first, two: second}
        for one, two in combinations(choices, 2)
        for first in choices[one]
        for second in choices[two]
    ]
    taken: Counter[tuple[str, Any]] = Counter()
    missing: set[Pair] = set().union(*(pairs(row) for row in every if completed(row, set())))
    rows = []
    for row in every:
        if pairs(row) <= missing:
            found = completed(row, missing)
            assert found is not None
            rows.append(found)
            missing -= pairs(found)
            taken.update(found.items())
    return rows


def pairwise(**choices: Sequence[Any] | Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrises a test: of these choices every pair meets in some case."""
    rows = covering({name: list(values) for name, values in choices.items()})
    return pytest.mark.parametrize(tuple(choices), [tuple(row.values()) for row in rows])
