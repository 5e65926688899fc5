"""CogView4: latent images (B, C, H, W), text of its own stream through the same layers, rotary positions by share.

A layout's tokens travel as a ribbon; for the call the rotary table is replaced by that of the tokens' own positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import CogView4Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import StackAdapter
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.counted import row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.ribbon import RibbonTokens
from ralu_cache.adapters.rotary import PerSampleTable, Table, kept_tables
from ralu_cache.report.flops import BlockCost, Part, StackCost


class CogView4Adapter(RibbonTokens, StackAdapter):
    """`CogView4Transformer2DModel` under text-to-image and Control. Guidance is a second call.

    Control concatenates conditioning channels to the latents: coarse tokens get their block means. The model's rows and
    columns are shares of the picture, so coarse tokens stand where the fine ones do, whatever the plan's positions.
    """

    family = "cogview4"
    pipelines = ("CogView4Pipeline", "CogView4ControlPipeline")
    batched = (
        "hidden_states", "encoder_hidden_states", "timestep", "original_size", "target_size", "crop_coords",
        "attention_mask",
    )  # fmt: skip
    lacks: ClassVar[Mapping[str, str]] = {
        "layers": "text and image go through the same MLP one after the other, and which of them it is given can't be "
        "told from within",
        "text attention": "text and image go through the same projections, and attention keeps neither apart",
    }

    def __init__(self, transformer: Any) -> None:
        config = transformer.config
        self.patch, self.channels, self.cost = config.patch_size, config.out_channels, _cost(transformer)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, CogView4Transformer2DModel)

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The layout's rotary table stands where that of the ribbon was; it is made once a layout."""

        def rotary(rope: Any, args: tuple[Any, ...], stock: tuple[Tensor, Tensor]) -> Any:
            current = active()
            if current is None or (current.positions is None and not current.staged):
                return None
            key = id(rope), id(current.layout)
            found = kept_tables(current, key, lambda: stock if current.positions is None else _tables(rope, current))
            return tuple(_HeadsFirst(t.table) if isinstance(t, PerSampleTable) else t for t in found)

        return [module.rope.register_forward_hook(Hook(rotary))]

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.transformer_blocks)

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden, text = transformer.patch_embed(call["hidden_states"], call["encoder_hidden_states"])
        sizes = (call[name] for name in ("original_size", "target_size", "crop_coords"))
        embedding = F.silu(transformer.time_condition_embed(call["timestep"], *sizes, hidden.dtype))
        modulated: Tensor = transformer.transformer_blocks[0].norm1(hidden, text, embedding)[0]
        return modulated

    def rows(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        rows, columns = self.grid(call)
        return len(call["hidden_states"]), rows * columns, call["encoder_hidden_states"].shape[1]


class _HeadsFirst(PerSampleTable):
    """One for attention that has the heads before the tokens (B, H, S, D)."""

    def __getitem__(self, index: object) -> Tensor:
        return self.table[:, None]


def _cost(transformer: Any) -> StackCost:
    """Text passes the layers that the image does; modulation is each block's own."""
    embed, blocks = transformer.patch_embed, []
    for block in transformer.transformer_blocks:
        around, mlp = row_flops(block.attn1), row_flops(block.ff)
        attention = Part(image=around, text=around, joint=block.attn1.inner_dim)
        blocks.append(BlockCost(attention, Part(image=mlp, text=mlp), Part(sample=row_flops(block.norm1))))
    sample = row_flops(transformer.time_condition_embed, transformer.norm_out)
    outside = Part(image=row_flops(embed.proj, transformer.proj_out), text=row_flops(embed.text_proj), sample=sample)
    return StackCost(outside, tuple(blocks))


def _tables(rope: Any, call: LayoutCall) -> tuple[Table, ...]:
    """Cosines and sines of the call's tokens; at whole positions the stock ones, bit for bit.

    The stock places of rows and columns are whole numbers up to `rope_axes_dim`, shares of the picture rounded down.
    """
    assert call.positions is not None
    positions = call.positions[:1] if call.layout.shared else call.positions
    half, parts = rope.dim // 2, []
    rates = 1.0 / (rope.theta ** (torch.arange(0, half, 2, dtype=torch.float32, device=positions.device) / half))
    for place, most, extent in zip(positions.unbind(-1), rope.rope_axes_dim, call.extent, strict=True):
        parts.append((place * most / extent).floor()[..., None] * rates)
    angles = torch.cat([*parts, *parts], -1)
    return tuple(t[0] if call.layout.shared else PerSampleTable(t) for t in (angles.cos(), angles.sin()))
