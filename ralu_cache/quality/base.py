"""What a quality metric is: a number for each picture, or one for a set of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Pictures = NDArray[np.float32]
"""(B, Y, X, 3) in [0, 1]"""


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown: its label, its unit ("dB", "%", or ""), and whether more is better."""

    label: str
    unit: str = ""
    higher: bool = True


class Metric(Protocol):
    """Judges each picture alone. `reference`: whether it compares with reference pictures."""

    @property
    def name(self) -> str: ...

    @property
    def info(self) -> MetricInfo: ...

    @property
    def reference(self) -> bool: ...

    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        """One finite value for each picture. Raises ValueError for pictures that are not (B, Y, X, 3) or not finite."""


class SetMetric(Protocol):
    """Judges many pictures together, by a few numbers (at most 64) of each that can be kept and pooled."""

    @property
    def name(self) -> str: ...

    @property
    def info(self) -> MetricInfo: ...

    def features(self, pictures: Pictures, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(B, Y, X, 3) -> (B, F)"""

    def value(self, features: NDArray[np.float32]) -> float:
        """(N, F) of all pictures -> the set's value."""


@dataclass(frozen=True)
class Likeness:
    """A `Metric` of pictures and their references, both (B, Y, X, 3); values above `ceiling` are cut to it."""

    name: str
    info: MetricInfo
    measure: Callable[[Pictures, Pictures], list[float]]
    ceiling: float = float("inf")
    reference: bool = True

    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        return [min(value, self.ceiling) for value in self.measure(*check_pairs(pictures, references))]


@dataclass(frozen=True)
class Reading:
    """A `Metric` of pictures (B, Y, X, 3) and their prompts alone."""

    name: str
    info: MetricInfo
    measure: Callable[[Pictures, Sequence[str]], list[float]]
    reference: bool = False

    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        return self.measure(pictures, prompts)


def check_pictures(pictures: ArrayLike) -> Pictures:
    """The pictures as a float32 array. Raises ValueError unless they are (B, Y, X, 3), B at least 1, and finite."""
    array = np.ascontiguousarray(pictures, dtype=np.float32)
    if array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise ValueError(f"expected pictures (B, Y, X, 3), got shape {array.shape}")
    if not np.isfinite(array).all():
        broken = [index for index, picture in enumerate(array) if not np.isfinite(picture).all()]
        raise ValueError(f"pictures must hold finite numbers; those at {broken} have nan or infinity in them")
    return array


def check_pairs(pictures: ArrayLike, references: ArrayLike | None) -> tuple[Pictures, Pictures]:
    """Both as `check_pictures` gives them. Raises ValueError if the references are missing or have another shape."""
    if references is None:
        raise ValueError("this metric compares pictures with references, but references is None")
    shown, wanted = check_pictures(pictures), check_pictures(references)
    if shown.shape != wanted.shape:
        raise ValueError(f"pictures of shape {shown.shape} cannot be compared with references of {wanted.shape}")
    return shown, wanted
