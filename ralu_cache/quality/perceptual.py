"""Distances in the eyes of a network of real images, for any model: to a reference picture, and between two sets."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from ralu_cache.quality.base import Likeness, MetricInfo, Pictures, check_pairs
from ralu_cache.quality.frechet import FrechetMetric, Gaussian
from ralu_cache.quality.lite0 import HEAD, load_lite0, see

FEATURES = 24  # numbers a picture that the Fréchet distance keeps: its covariance must be known from few pictures
_SEED = 20


def perceptual_distance(pictures: ArrayLike, references: ArrayLike) -> list[float]:
    """LPIPS without its learnt weights (Zhang et al. 2018) on EfficientNet-Lite0: 0 for equal pictures (B, Y, X, 3).

    At every place of five maps, features are scaled to length 1; their squared differences are summed over channels,
    averaged over places, and averaged over the maps. At most 4.
    """
    shown, wanted = (see(images)[0] for images in check_pairs(pictures, references))
    each = [
        (F.normalize(a, dim=1, eps=1e-6) - F.normalize(b, dim=1, eps=1e-6)).square().sum(1).mean((1, 2))
        for a, b in zip(shown, wanted, strict=True)
    ]
    values: list[float] = torch.stack(each).mean(0).tolist()
    return values


def load_perceptual(device: str) -> Likeness:
    """1000 times `perceptual_distance`, on the CPU whatever `device`. Raises MissingError without the weights."""
    load_lite0()
    info = MetricInfo("perceptual distance", "‰", higher=False)
    return Likeness("perceptual", info, lambda a, b: [1000 * value for value in perceptual_distance(a, b)])


def distance_to_pictures(references: Pictures) -> FrechetMetric:
    """By 24 features of EfficientNet-Lite0, to a set of pictures (N, Y, X, 3), such as full runs of other seeds.

    Know the distance between two sets of full runs beside it.
    """
    info = MetricInfo("Fréchet distance of image features", higher=False)
    return FrechetMetric("image_frechet", info, summaries, Gaussian.fit(summaries(references)))


def summaries(pictures: Pictures) -> NDArray[np.float32]:
    """(B, Y, X, 3) in [0, 1] -> (B, 24): the network's 1280 numbers on 24 fixed orthogonal directions."""
    projected: NDArray[np.float32] = (see(pictures)[1] @ _directions()).numpy()
    return projected


@cache
def _directions() -> torch.Tensor:
    """(1280, 24), orthogonal columns as long as preserves the squared distances of features on average."""
    random = np.random.default_rng(_SEED).standard_normal((HEAD, FEATURES))
    return torch.from_numpy(np.linalg.qr(random)[0] * (HEAD / FEATURES) ** 0.5).float()
