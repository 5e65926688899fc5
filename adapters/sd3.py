"""Stable Diffusion 3 and 3.5: latents (B, C, H, W), positions from a table that is cropped at its centre.

A layout's tokens travel as a ribbon; for the call the table's crop is replaced by its samples at the tokens' own
positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import TextImageAdapter
from ralu_cache.adapters.calls import LayoutCall, Setting
from ralu_cache.adapters.counted import flux_blocks, row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.ribbon import RibbonTokens
from ralu_cache.adapters.sparse_sd3 import SD3SparseProcessor
from ralu_cache.adapters.weights import at_hand
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.report.flops import Part, StackCost


class SD3Adapter(RibbonTokens, TextImageAdapter):
    """`SD3Transformer2DModel` under text-to-image, img2img, inpaint and ControlNet pipelines.

    Classifier-free guidance is one call on the stack [negative, positive]; skip-layer guidance is a second call. The
    inpainting model concatenates conditioning channels to the latents: coarse tokens get their block means.
    """

    family = "sd3"
    pipelines = (
        "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline",
    )  # fmt: skip
    guidance = "stack"
    processor = SD3SparseProcessor
    control = ("block_controlnet_hidden_states",)
    batched = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "controlnet_cond")

    def __init__(self, transformer: Any) -> None:
        config = transformer.config
        self.patch = config.patch_size
        self.channels = transformer.out_channels
        self.largest = config.pos_embed_max_size
        outside = Part(
            image=row_flops(transformer.pos_embed.proj, transformer.proj_out),
            text=row_flops(transformer.context_embedder),
            sample=row_flops(transformer.time_text_embed, transformer.norm_out),
        )
        self.cost = StackCost(outside, flux_blocks(transformer))

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, SD3Transformer2DModel)

    def check(self, call: Mapping[str, Any], setting: Setting) -> None:
        """Skip-layer guidance: its window counts in steps, and the first block is where a residual begins."""
        skipped, steps, believed = call.get("skip_layers"), setting.steps, setting.believed_steps
        if skipped is None:
            return
        if believed not in (None, steps):
            raise ValueError(
                f"skip_guidance_layers={skipped} with num_inference_steps={believed}: the plan takes {steps} steps "
                f"and the guidance would start and stop at the wrong ones; pass num_inference_steps={steps}, or divide "
                "your own steps with RALU(split=...)"
            )
        if setting.leaves_out:
            raise ValueError(
                f"skip_guidance_layers={skipped} with steps at which the model isn't called is not supported: the "
                "guidance would start and stop at the wrong ones; use temporal=None, or a policy without forecasts"
            )
        if setting.caches is not None and 0 in skipped:
            raise ValueError(
                f"skip_guidance_layers={skipped} with temporal caching is not supported: the first block must run; "
                "leave out 0, or accelerate with temporal=None"
            )

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        if max(layout.fine_grid) > self.largest:
            raise ValueError(
                f"{layout.fine_grid[0]}x{layout.fine_grid[1]} tokens are more than the model's table of positions has: "
                f"at most {self.largest}x{self.largest}; ask for a smaller height and width"
            )
        short = super().shorten(call, layout, tokens, positions)
        if (control := call.get("controlnet_cond")) is not None:
            short["controlnet_cond"] = self.ribbon(layout.reduce(control))
        return short

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The stock embedding refuses a ribbon wider than its table: it gets no tokens, and the hook embeds them."""

        def spare(embed: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if _placed(active()) is None:
                return None
            return (args[0][:0, :, : self.patch, : self.patch],)

        def embed_tokens(embed: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            current = _placed(active())
            if current is None:
                return None
            key = id(embed), id(current.layout)
            if key not in current.tables:
                with at_hand(embed):  # its own forward is over
                    current.tables[key] = _table(embed, current)
            table = current.tables[key]
            if current.samples is not None and len(table) > 1:
                table = table[current.samples]
            tokens = embed.proj(current.call["hidden_states"]).flatten(2).transpose(1, 2)
            return (tokens + table).to(tokens.dtype)

        embed = module.pos_embed
        return [embed.register_forward_pre_hook(Hook(spare)), embed.register_forward_hook(Hook(embed_tokens))]

    def coarse_share(self, image: int, words: int, others: int) -> float:
        """See `Cost.coarse_share`; CLIP's tokens stand beside T5's."""
        return self.counted_share(image, words + others)

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        rows, columns = self.grid(call)
        return len(call["hidden_states"]), rows * columns, call["encoder_hidden_states"].shape[1]

    def skipped(self, call: Mapping[str, Any]) -> Collection[int]:
        return call.get("skip_layers") or ()

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.pos_embed(call["hidden_states"])
        embedding = transformer.time_text_embed(call["timestep"], call["pooled_projections"])
        return transformer.transformer_blocks[0].norm1(hidden, emb=embedding)[0]


def _placed(call: LayoutCall | None) -> LayoutCall | None:
    """The call, if its tokens have positions of their own."""
    return None if call is None or call.positions is None else call


def _table(embed: Any, call: LayoutCall) -> Tensor:
    """The embedding's table at the positions of the call's tokens: (B, n, d), or (1, n, d) where all samples agree."""
    assert call.positions is not None
    size = embed.pos_embed_max_size
    origin = [(size - side) // 2 for side in call.extent]  # of the centre crop, as the stock embedding has it
    positions = call.positions[:1] if call.layout.shared else call.positions
    placed = torch.stack([places + start for places, start in zip(positions.unbind(-1), origin, strict=True)], -1)
    return sample_table(embed.pos_embed.view(size, size, -1), placed)


def sample_table(table: Tensor, positions: Tensor) -> Tensor:
    """Bilinear samples of `table` (R, C, d) at (row, column) `positions` (B, n, 2): (B, n, d), edges continued.

    At whole positions these are the table's own values, bit for bit.
    """
    below = positions.floor().long()
    sides = list(zip(below.unbind(-1), table.shape[:2], strict=True))
    top, left = (place.clamp(0, side - 1) for place, side in sides)
    bottom, right = ((place + 1).clamp(0, side - 1) for place, side in sides)
    down, along = (positions - below)[..., None].unbind(-2)
    values = table.float()
    upper = torch.lerp(values[top, left], values[top, right], along)
    lower = torch.lerp(values[bottom, left], values[bottom, right], along)
    return torch.lerp(upper, lower, down).to(table.dtype)
