"""Ribbons: a layout's tokens as an image of one row of patches, (B, C, p, p n), for models that embed latent images.

So they go through the stock embedding, blocks and output; a family tells by `install_positions` where each one stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ralu_cache.adapters.protocols import Tokens
from ralu_cache.plane.canvas import TokenLayout, patchify, unpatchify


class RibbonTokens(Tokens):
    """The tokens of latents (B, C, H, W); conditioning channels behind the first `channels` are reduced like them."""

    patch: int
    channels: int

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        height, width = call["hidden_states"].shape[-2:]
        return height // self.patch, width // self.patch

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        latents: Tensor = call["hidden_states"][:, : self.channels]
        return latents

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        condition = call["hidden_states"][:, self.channels :]
        if condition.shape[1]:
            tokens = torch.cat([tokens, layout.reduce(condition)], -1)
        return {**call, "hidden_states": self.ribbon(tokens)}

    def ribbon(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, C p p) -> (B, C, p, p n)."""
        return unpatchify(tokens, 1, tokens.shape[1], self.patch)

    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        return layout.expand(patchify(prediction, self.patch))
