"""Geometry: how a pipeline's latents map to images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ralu_cache.plane.canvas import TokenLayout


@dataclass(frozen=True)
class Geometry:
    """The adapter's conversions of latents, and its sizes.

    `to_image(latents, grid)` gives (B, C, H, W) from what the pipeline holds, `from_image(image, like)` the inverse;
    `prediction_image(prediction, layout)` does so for the model's predictions, which may be arranged otherwise;
    `patch` is latent pixels per token side, `pixels` image pixels per token side; image tokens are padded to whole
    multiples of `fill`.
    `known` is False where nothing is known of how tokens lie in a picture: then the grid is a stand-in.
    """

    to_image: Callable[[Tensor, tuple[int, int]], Tensor]
    from_image: Callable[[Tensor, Tensor], Tensor]
    prediction_image: Callable[[Tensor, TokenLayout], Tensor]
    patch: int
    pixels: int
    fill: int = 1
    known: bool = True
