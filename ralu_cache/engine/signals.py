"""What a policy looks at in a denoiser call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ralu_cache.history.attention import KeyValueMemory
from ralu_cache.history.feature import Feature
from ralu_cache.history.layer_cache import LayerCache
from ralu_cache.history.ledger import Ledger
from ralu_cache.history.marks import Mark
from ralu_cache.history.trends import token_changes
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import plane
from ralu_cache.temporal.policy import Policy, Situation, TokenView


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


def view_of(
    situation: Situation,
    newest: Feature,
    kept: Tensor | None,
    measure: Callable[[str], Tensor],
) -> TokenView:
    """What a policy may know of the tokens of a call. newest: their residual; kept: (B, n) bool, None for all."""
    valid = newest.mark == Mark.VALID
    ahead = torch.where(valid, situation.sigma - newest.sigma, 0.0)
    kept = torch.ones_like(valid) if kept is None else kept
    return TokenView(situation.step - newest.step, valid, kept, ahead, measure)


def measured(
    ledger: Ledger, layout: TokenLayout, memory: KeyValueMemory | None, layers: LayerCache | None, name: str
) -> Tensor:
    """See `TokenView.measure`. Raises ValueError for what a policy of this kind cannot ask for.

    No method: a view that held its branch would keep it alive until the garbage collector comes.
    """
    if name == "change":
        return token_changes(ledger, layout)
    if layers is not None:
        return layers.measure(name)
    if name in ("key", "value") and memory is not None:
        return memory.norms(name)
    raise ValueError(f"token measure {name!r} is not kept; known here: key, value, change")
