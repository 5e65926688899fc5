"""What a loss of quality is: by how much a picture is worse than the full run's of the same prompt and seed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ralu_cache.quality.attributes import ATTRIBUTES_SHOWN, PROBABILITY
from ralu_cache.quality.base import Metric, MetricInfo, Pictures
from ralu_cache.quality.likeness import LIKENESS
from ralu_cache.quality.perceptual import load_perceptual
from ralu_cache.quality.pretrained import MissingError, load_clip, load_image_reward
from ralu_cache.quality.scene_prompts import read_prompt

DEFAULT = "perceptual"
"""Of the measures that work on any model, the one that agreed best with what is drawn under strong guidance
(`benchmarks/results/regime/measures.md`)."""
_KNOWN: Mapping[str, Callable[[str], Metric]] = {
    "perceptual": load_perceptual,
    "psnr": lambda device: next(metric for metric in LIKENESS if metric.name == "psnr"),
    "clip": load_clip,
    "image-reward": load_image_reward,
    "attributes": lambda device: ATTRIBUTES_SHOWN,
    "probability": lambda device: PROBABILITY,
}
SCENES = ("attributes", "probability")  # judge what the embedded models' prompts state
QUALITIES = (*_KNOWN, "package.module:function")


@dataclass(frozen=True)
class Loss:
    """name: as it was asked for. The loss of the full run is 0; a picture that is better than it has one below 0."""

    name: str
    metric: Metric

    def __call__(self, pictures: Pictures, references: Pictures, prompts: Sequence[str]) -> list[float]:
        """Of each picture (B, Y, X, 3), or of each video (B, F, Y, X, 3) as the mean over its frames.

        Raises ValueError where the measure gives no finite number for each.
        """
        frames = pictures.shape[1] if pictures.ndim == 5 else 1
        flat, wanted = (each.reshape(-1, *each.shape[-3:]) for each in (pictures, references))
        texts = [prompt for prompt in prompts for _ in range(frames)]
        values, best = (self._values(each, wanted, texts) for each in (flat, wanted))
        difference = (best - values) if self.metric.info.higher else (values - best)
        found: list[float] = difference.reshape(-1, frames).mean(1).tolist()
        return found

    def _values(self, pictures: Pictures, references: Pictures, prompts: Sequence[str]) -> np.ndarray:
        values = np.asarray(self.metric(pictures, references, prompts), dtype=np.float64)
        if values.shape != (len(pictures),) or not np.isfinite(values).all():
            raise ValueError(f"quality {self.name!r} must give one finite number a picture, got {values.tolist()}")
        return values


@dataclass(frozen=True)
class _Own:
    """A user's function of (pictures, references, prompts): more is better, unless it says otherwise itself."""

    name: str
    function: Callable[[Pictures, Pictures | None, Sequence[str]], Sequence[float]]
    reference = True

    @property
    def info(self) -> MetricInfo:
        found = getattr(self.function, "info", None)
        return found if isinstance(found, MetricInfo) else MetricInfo(self.name.rpartition(":")[2])

    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        return [float(value) for value in self.function(pictures, references, prompts)]


def loss_of(quality: str | Callable[..., Any], prompts: Sequence[str], device: str = "cpu") -> Loss:
    """The loss by a measure's name, by "package.module:function", or by a function of one's own.

    Such a function is given pictures (B, Y, X, 3) in [0, 1], the full run's and the prompts, and returns a number for
    each, more being better unless its `info` is a `MetricInfo(..., higher=False)`. Raises ValueError for an unknown
    name and for prompts that the measure can't read, ImportError for what is not installed.
    """
    if callable(quality):
        name = getattr(quality, "__name__", type(quality).__name__)
        return Loss(name, _Own(name, quality))
    if ":" in quality:
        return Loss(quality, _Own(quality, _imported(quality)))
    if quality not in _KNOWN:
        raise ValueError(f"unknown quality {quality!r}; accepted: {', '.join(QUALITIES)}")
    if quality in SCENES:
        for prompt in prompts:
            read_prompt(prompt)
    try:
        return Loss(quality, _KNOWN[quality](device))
    except MissingError as error:
        raise ImportError(f"quality {quality!r} can't be had: {error}; accepted: {', '.join(QUALITIES)}") from error


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (AttributeError, ImportError) as error:
        raise ValueError(f"quality {name!r}, as package.module:function, can't be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"quality {name!r} is no function of (pictures, references, prompts), but {found!r}")
    return found
