"""What families with packed latents share (FLUX, Qwen-Image): the pipeline holds tokens (B, N, 4 C), not images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ralu_cache.adapters.base import TextImageAdapter
from ralu_cache.plane.canvas import TokenLayout, patchify, unpatchify
from ralu_cache.plane.token_map import corners, take, token_at


class PackedAdapter(TextImageAdapter):
    """Packed tokens, channels in the order (c, row, column), `channels` of them the latents'.

    Conditioning channels behind those, and a ControlNet's packed input, are reduced like the latents. Tokens behind
    the image's, those of reference images, ride along at full resolution.
    """

    patch = 2

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        return self.to_image(call["hidden_states"][:, : grid[0] * grid[1], : self.channels], grid)

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        return latents if latents.ndim == 4 else unpatchify(latents, *grid, self.patch)

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        return image if like.ndim == 4 else patchify(image, self.patch)

    def pack(self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor) -> dict[str, Any]:
        """The call on the layout's `tokens` (B, n, channels), positions apart."""
        hidden = call["hidden_states"]
        count = layout.fine_grid[0] * layout.fine_grid[1]
        condition = hidden[:, :count, self.channels :]
        if condition.shape[-1]:
            tokens = torch.cat([tokens, self._reduce(condition, layout)], -1)
        short = {**call, "hidden_states": torch.cat([tokens, hidden[:, count:]], 1)}
        if (control := call.get("controlnet_cond")) is not None:
            if control.ndim != 3 or control.shape[1] != count:
                raise ValueError(
                    f"controlnet_cond of shape {tuple(control.shape)} is not supported: expected packed latents "
                    f"({len(hidden)}, {count}, channels); ControlNets with a hint network take no spatial stages"
                )
            short["controlnet_cond"] = self._reduce(control, layout)
        return short

    def _reduce(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        return layout.reduce(unpatchify(packed, *layout.fine_grid, self.patch))

    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        full = patchify(layout.expand(prediction[:, : layout.tokens]), self.patch)
        return torch.cat([full, prediction[:, layout.tokens :]], 1)

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        batch, tokens = call["hidden_states"].shape[:2]
        return batch, tokens, call["encoder_hidden_states"].shape[1]


class TokenwiseAdapter(PackedAdapter):
    """Packed tokens whose pipelines scale a guided prediction so that each token of it has the conditional one's norm.

    Each of a coarse token's four places gets the whole token, so that norms over a token are what they are: what is
    done token by token comes out the same in all four, and `prediction_image` reads one of them.
    """

    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        full = take(prediction[:, : layout.tokens], token_at(layout))
        return torch.cat([full, prediction[:, layout.tokens :]], 1)

    def prediction_image(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        return layout.expand(take(prediction, corners(layout)))


def of_one(ids: Tensor) -> Tensor:
    """The position ids (N, 3 or 4) of one sample: picture, row, column. They are the same for all."""
    return ids[0] if ids.ndim == 3 else ids
