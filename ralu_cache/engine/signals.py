"""What a policy looks at in a denoiser call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import plane
from ralu_cache.temporal.base import Policy


def signal_of(
    policy: Policy, layout: TokenLayout, modulated: Callable[[], Tensor], canvas: Callable[[], Tensor]
) -> Tensor | None:
    """A policy's signal on a layout: tokens (B, n, d), or an image (B, C, H, W), of a video (B, C, F, H, W)."""
    kind = policy.signal
    if kind is None:
        return None
    if kind == "canvas":
        return _frames(canvas().float(), layout)
    tokens = modulated()[:, : layout.tokens]
    return _frames(plane(tokens, layout), layout) if kind == "plane" else tokens


def _frames(image: Tensor, layout: TokenLayout) -> Tensor:
    return image if layout.frames == 1 else image.unflatten(2, (layout.frames, -1))
