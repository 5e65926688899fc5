"""LTX-Video: packed videos (B, F H W, C) of patch 1, text by cross-attention; no stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn

from ralu_cache.adapters.base import BlocksAdapter
from ralu_cache.adapters.calls import Setting
from ralu_cache.adapters.counted import row_flops
from ralu_cache.adapters.sparse_ltx import LTXSparseProcessor
from ralu_cache.plane.canvas import patchify, unpatchify
from ralu_cache.report.flops import BlockCost, Part, StackCost


class LTXAdapter(BlocksAdapter):
    """`LTXVideoTransformer3DModel` under text-to-video. Guidance is one call on the stack [negative, positive].

    Image-to-video steps the scheduler on all frames but the first, which is another canvas than the model's.
    """

    family = "ltx"
    pipelines = ("LTXPipeline",)
    patch = 1
    guidance = "stack"
    processor = LTXSparseProcessor
    ranked = True
    batched = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep")
    conditions = ("encoder_hidden_states", "encoder_attention_mask")
    lacks: ClassVar[Mapping[str, str]] = {
        "tokens": "a token is 32 x 32 pixels in 8 frames already, and the mean of four of them is no coarser picture",
        "text attention": "the text has an attention of its own, of which all tokens give it the same share",
    }

    def __init__(self, transformer: Any) -> None:
        config = transformer.config
        if (config.patch_size, config.patch_size_t) != (1, 1):
            raise ValueError(f"patches of {config.patch_size_t} frames x {config.patch_size} are not supported, only 1")
        self.channels = config.out_channels or config.in_channels
        self.cost, self._time = _cost(transformer), row_flops(transformer.time_embed)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, LTXVideoTransformer3DModel)

    def check(self, call: Mapping[str, Any], setting: Setting) -> None:
        if setting.caches == "rows" and call["timestep"].ndim > 1:
            raise ValueError(
                "a time step for each token is not supported with row-sparse recompute; use another temporal policy"
            )

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        return call["num_frames"] * call["height"], call["width"]

    def frames(self, call: Mapping[str, Any]) -> int:
        return call["num_frames"]

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        return self.to_image(call["hidden_states"], grid)

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        return latents if latents.ndim == 4 else unpatchify(latents, *grid, self.patch)

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        return image if like.ndim == 4 else patchify(image, self.patch)

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.transformer_blocks)

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden, block = transformer.proj_in(call["hidden_states"]), transformer.transformer_blocks[0]
        levels, _ = transformer.time_embed(
            call["timestep"].flatten(), batch_size=len(hidden), hidden_dtype=hidden.dtype
        )
        table = block.scale_shift_table + levels.view(len(hidden), -1, 6, hidden.shape[-1])
        return block.norm1(hidden) * (1 + table[:, :, 1]) + table[:, :, 0]

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """The text is read by the blocks, and does not run through them: no text tokens."""
        return *call["hidden_states"].shape[:2], 0

    def rows(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        return *call["hidden_states"].shape[:2], call["encoder_hidden_states"].shape[1]

    def besides(self, call: Mapping[str, Any]) -> int:
        """A time step for each sample, or for each token."""
        levels = call["timestep"].numel() // len(call["timestep"])
        return len(call["hidden_states"]) * levels * self._time


def _cost(transformer: Any) -> StackCost:
    blocks = []
    for block in transformer.transformer_blocks:
        own, text = block.attn1, block.attn2
        image = row_flops(own, text.to_q, text.to_out)
        read = row_flops(text.to_k, text.to_v)
        attention = Part(image=image, text=read, among_image=own.inner_dim, cross=text.inner_dim)
        blocks.append(BlockCost(attention, Part(image=row_flops(block.ff))))
    tokens, words = row_flops(transformer.proj_in, transformer.proj_out), row_flops(transformer.caption_projection)
    return StackCost(Part(image=tokens, text=words), tuple(blocks))
