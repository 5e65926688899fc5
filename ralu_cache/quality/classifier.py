"""A small network that sees the attributes of the embedded model's scenes; `benchmarks/train_classifier.py` made it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ralu_cache.quality.base import Pictures, check_pictures
from ralu_cache.quality.scene_prompts import ATTRIBUTES

SIZE = 128  # pixels of a side that the network sees
FEATURES = 32  # numbers that it sums a picture up in, before it names the attributes
_WIDTHS = (16, 32, 64, 96)
_BATCH = 64


def classifier_folder() -> Path:
    """Where the weights are, with the statistics of real renders and the classifier's own accuracy."""
    return Path(str(files("ralu_cache") / "tiny_flux" / "classifier"))


class SceneClassifier(nn.Module):
    """Pictures (B, 3, 128, 128) in [-1, 1] -> a score for every class of every attribute (B, sum of classes)."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = _WIDTHS
        self.trunk = nn.Sequential(
            _convolution(3, first, kernel=5, stride=2),
            _convolution(first, second, stride=2),
            _convolution(second, third, stride=2),
            _Residual(third),
            _convolution(third, last, stride=2),
            _Residual(last),
        )
        place = 16  # channels that keep the 8 x 8 map
        self.where = nn.Sequential(_convolution(last, place, kernel=1), nn.Flatten())
        self.what = nn.Sequential(nn.AdaptiveMaxPool2d((1, 2)), nn.Flatten())  # in the left half, in the right half
        self.summary = nn.Linear(64 * place + 2 * last, FEATURES)
        self.heads = nn.Sequential(
            nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, sum(map(len, ATTRIBUTES.values())))
        )

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, 128, 128) -> (B, 32)"""
        seen = self.trunk(pictures)
        summary: Tensor = self.summary(torch.cat([self.where(seen), self.what(seen)], 1))
        return summary

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.heads(self.features(pictures))
        return scores


class _Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.inner(x)
        return x + inner


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


@cache
def load_classifier() -> SceneClassifier:
    """The trained network, on the CPU, in evaluation mode."""
    network = SceneClassifier()
    weights = load_file(classifier_folder() / "model.safetensors")
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network.eval().requires_grad_(False)


@torch.no_grad()
def classify(pictures: Pictures) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Features (B, 32), and for each attribute the scores of its classes (B, classes).

    pictures: (B, Y, X, 3) in [0, 1], brought to 128 x 128 by area average. Each is judged alone: the batch around it
    changes nothing but rounding.
    """
    network, images = load_classifier(), to_network(pictures)
    features = torch.cat([network.features(part) for part in images.split(_BATCH)])
    scores = network.heads(features).split([len(classes) for classes in ATTRIBUTES.values()], 1)
    return features.numpy(), {name: values.numpy() for name, values in zip(ATTRIBUTES, scores, strict=True)}


def to_network(pictures: Pictures) -> Tensor:
    """(B, Y, X, 3) in [0, 1] -> (B, 3, 128, 128) in [-1, 1]."""
    images = torch.from_numpy(check_pictures(pictures)).permute(0, 3, 1, 2)
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="area")
    return images * 2 - 1
