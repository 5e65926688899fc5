"""What families of videos (B, C, F, H, W) share: frames stand one below the other, as one tall image (B, C, F H, W).

Rows become coarse, frames never do. A layout's tokens travel as a *ribbon*, a video of one frame and one row of patches
(B, C, 1, p, p n), through the stock embedding, blocks and output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ralu_cache.adapters.base import TransformerAdapter
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.plane.canvas import TokenLayout, patchify, unpatchify


class VideoAdapter(TransformerAdapter):
    """Conditioning channels behind the latents' own `channels` are reduced like them."""

    default_preset = "ralu-7x"

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        frames, height, width = call["hidden_states"].shape[2:]
        return frames * (height // self.patch), width // self.patch

    def frames(self, call: Mapping[str, Any]) -> int:
        return call["hidden_states"].shape[2]

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        return self.to_image(call["hidden_states"][:, : self.channels], grid)

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        return latents if latents.ndim == 4 else latents.flatten(2, 3)

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        return image if like.ndim == 4 else image.unflatten(2, like.shape[2:4])

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        condition = call["hidden_states"][:, self.channels :]
        if condition.shape[1]:
            tokens = torch.cat([tokens, layout.reduce(condition.flatten(2, 3))], -1)
        return {**call, "hidden_states": unpatchify(tokens, 1, tokens.shape[1], self.patch)[:, :, None]}

    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        image = layout.expand(patchify(prediction[:, :, 0], self.patch))
        return image.unflatten(2, (layout.frames, -1))


def places_of(call: LayoutCall) -> tuple[Tensor, Tensor, Tensor]:
    """Frame, row in it and column of the call's tokens, each (B, n), or (1, n) where all samples agree."""
    assert call.positions is not None
    positions = call.positions[:1] if call.layout.shared else call.positions
    frame = call.layout.token_frames()[: len(positions)]
    return frame, positions[..., 0] - frame * (call.extent[0] // call.layout.frames), positions[..., 1]
