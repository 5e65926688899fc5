"""Fréchet distance between the classifier's features of pictures and those of real renders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ralu_cache.quality.base import MetricInfo, Pictures
from ralu_cache.quality.classifier import classifier_folder, classify

_FILE = "renders.safetensors"


@dataclass(frozen=True)
class Gaussian:
    """mean (F,), covariance (F, F), float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def fit(cls, features: NDArray[np.floating]) -> Gaussian:
        """The mean and unbiased covariance of features (N, F). Raises ValueError for fewer than two rows."""
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or len(rows) < 2:
            raise ValueError(f"a Gaussian needs features (N, F) of at least 2 pictures, got shape {rows.shape}")
        return cls(rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False)))

    @classmethod
    def load(cls, folder: Path) -> Gaussian:
        return cls(**load_file(folder / _FILE))

    def save(self, folder: Path) -> None:
        save_file({"mean": self.mean, "covariance": self.covariance}, folder / _FILE)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m - m'|² + tr(C + C' - 2 (C^½ C' C^½)^½) (Dowson and Landau 1982), the square of a metric; at least 0."""
    root = _root(a.covariance)
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.covariance @ root), 0, None)).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(np.square(a.mean - b.mean).sum() + spread))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of a symmetric matrix; eigenvalues that rounding made negative count as zero."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


@dataclass(frozen=True)
class FrechetMetric:
    """A `SetMetric`: distance of the features (N, F) that `see` finds in pictures to those of a reference; 0 is best.

    Biased upwards for few pictures, the more the fewer, because their covariance is poorly known: compare only sets of
    the same size and the same prompts.
    """

    name: str
    info: MetricInfo
    see: Callable[[Pictures], NDArray[np.float32]]
    reference: Gaussian

    def features(self, pictures: Pictures, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(B, Y, X, 3) -> (B, F)"""
        return self.see(pictures)

    def value(self, features: NDArray[np.float32]) -> float:
        """Of features (N, F), N at least 2."""
        return frechet_distance(Gaussian.fit(features), self.reference)


@cache
def distance_to_renders() -> FrechetMetric:
    """By the classifier's 32 features, to renders that went through the model's autoencoder.

    The renders' prompts are drawn from the whole grammar, so a few chosen prompts
    are far from them however well they are drawn. What real renders themselves reach at some sizes stands in
    `classifier.json` beside the weights.
    """
    info = MetricInfo("Fréchet distance", higher=False)
    return FrechetMetric("frechet", info, lambda pictures: classify(pictures)[0], Gaussian.load(classifier_folder()))
