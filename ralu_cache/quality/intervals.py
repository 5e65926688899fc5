"""How sure a measured number is: bootstrap intervals over pictures (Efron 1979), paired ones for differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], float]
"""Rows of pictures (N, ...) -> one number."""


@dataclass(frozen=True)
class Interval:
    """A number measured on all pictures, and the bounds between which `level` of its resampled values lie."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is told from none."""
        return self.low > 0 or self.high < 0


def mean(rows: NDArray[np.float64]) -> float:
    return float(rows.mean())


def bootstrap(rows: ArrayLike, statistic: Statistic = mean, draws: int = 1000, level: float = 0.95) -> Interval:
    """The percentile interval of a statistic of pictures' rows (N, ...), drawn again with replacement.

    For a paired difference give the pictures' differences. Statistics that are biased for few distinct rows, such as a
    Fréchet distance, lie above their own value in most draws: compare such intervals with each other, not with 0.
    Raises ValueError for fewer than 2 rows, draws below 1, or a level that is not between 0 and 1.
    """
    table = np.asarray(rows, np.float64)
    if table.ndim < 1 or len(table) < 2:
        raise ValueError(f"an interval needs rows of at least 2 pictures, got shape {table.shape}")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 1 and level between 0 and 1, got {draws} and {level}")
    rng = np.random.default_rng(0)
    values = [statistic(table[rng.integers(len(table), size=len(table))]) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(table), float(low), float(high))


def pictures_needed(differences: ArrayLike, smallest: float) -> int:
    """How many pictures tell a mean difference of `smallest` from none (95 %), by paired differences (N,) of some.

    From the normal approximation n = (1.96 s / smallest)². Raises ValueError for fewer than 2 differences or a smallest
    difference that is not positive.
    """
    each = np.asarray(differences, np.float64)
    if each.ndim != 1 or len(each) < 2:
        raise ValueError(f"a spread needs at least 2 differences (N,), got shape {each.shape}")
    if not smallest > 0:
        raise ValueError(f"smallest must be positive, got {smallest}")
    return int(np.ceil(np.square(1.96 * each.std(ddof=1) / smallest)))
