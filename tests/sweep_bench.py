"""A bench on the embedded model around a small transformer, at a small size, with metrics that cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.quality.base import MetricInfo, Pictures
from ralu_cache.sweep.engine import Bench
from ralu_cache.sweep.grid import Grid
from ralu_cache.sweep.records import Header

STEPS = 8  # of the full run; "ralu-7x" has ten, which cost less
CALL: dict[str, Any] = {"max_sequence_length": 16}
GRID = Grid(
    spatial=("none", "ralu-7x"), temporal=("none", "taylorseer"), thresholds=(2,), plain_steps=(3,), steps=(STEPS,),
    sizes=((64, 64),), prompts=("a red circle on a white background", "a blue star on a black background"),
    seeds=(0, 1), batch=2,
)  # fmt: skip


class Brightness:
    name = "brightness"
    info = MetricInfo("brightness")
    reference = False

    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        return [float(picture.mean()) for picture in pictures]


class Distance:
    name = "distance"
    info = MetricInfo("distance", higher=False)
    reference = True

    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        assert references is not None
        return [float(np.abs(a - b).mean()) for a, b in zip(pictures, references, strict=True)]


class Colour:
    name = "colour"
    info = MetricInfo("colour")

    def features(self, pictures: Pictures, prompts: Sequence[str]) -> np.ndarray:
        return pictures.mean((1, 2))

    def value(self, features: np.ndarray) -> float:
        return float(features.std())


def header(**changes: Any) -> Header:
    metrics = {m.name: m.info for m in (Brightness(), Distance(), Colour())}
    return Header(**({"model": "tiny-flux", "full_steps": STEPS, "call": CALL, "metrics": metrics,
                      "hardware": "test", "versions": {}} | changes))  # fmt: skip


def light_flux() -> Any:
    """tiny-flux around a small random transformer: for what takes prompts, whatever it draws."""
    pipe = TINY_FLUX.load()
    few = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    pipe.transformer = FluxTransformer2DModel.from_config({**pipe.transformer.config, **few}).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_bench() -> Bench:
    return Bench(light_flux(), STEPS, CALL, (Brightness(), Distance()), (Colour(),))
