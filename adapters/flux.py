"""FLUX.1: packed tokens (B, N, 4 C), positions as (0, row, column) ids, one rotary table for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import Hook, attention_heads, text_share
from ralu_cache.adapters.packed import PackedAdapter
from ralu_cache.adapters.rotary import PerSampleTable, own_tables, pick
from ralu_cache.adapters.sparse import FluxSparseProcessor
from ralu_cache.canvas import TokenLayout
from ralu_cache.flops import TransformerShape

if TYPE_CHECKING:
    from ralu_cache.engine.root import LayoutCall


class FluxAdapter(PackedAdapter):
    """`FluxTransformer2DModel` under text-to-image, img2img, inpaint, Fill, Kontext, Control and ControlNet pipelines.

    Fill and Control concatenate conditioning channels to the latents: coarse tokens get their block means. Kontext
    appends reference tokens: they ride along at full resolution.
    """

    family = "flux"
    default_preset = "ralu-8x"
    pipelines = (
        "FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxKontextPipeline",
        "FluxKontextInpaintPipeline", "FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline",
        "FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline",
    )  # fmt: skip
    processor = FluxSparseProcessor
    control = ("controlnet_block_samples", "controlnet_single_block_samples")
    batched = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")

    def __init__(self, transformer: Any) -> None:
        config = transformer.config
        self.channels = config.out_channels or config.in_channels
        self.shape = TransformerShape(
            width=config.num_attention_heads * config.attention_head_dim,
            double_blocks=config.num_layers,
            single_blocks=config.num_single_layers,
            in_channels=config.in_channels,
            out_channels=self.channels,
            context_channels=config.joint_attention_dim,
            pooled_channels=config.pooled_projection_dim,
            guidance=config.guidance_embeds,
        )

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, FluxTransformer2DModel)

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        ids = call["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        rows, columns = (torch.where(ids[:, :1] == 0, ids[:, 1:], 0).amax(0) + 1).int().tolist()
        return rows, columns

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        ids = call["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        count = layout.fine_grid[0] * layout.fine_grid[1]
        spot = positions[0]
        own = torch.cat([torch.zeros_like(spot[:, :1]), spot], 1)
        return {**self.pack(call, layout, tokens), "img_ids": torch.cat([own, ids[count:].to(spot)])}

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The rotary tables of a layout are made once; those of samples that differ are made per sample."""

        def shrink(embed: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            current = active()
            return None if current is None or _key(embed, current) not in current.tables else (args[0][:1],)

        def rotary(embed: Any, args: tuple[Tensor, ...], table: tuple[Tensor, Tensor]) -> Any:
            current = active()
            if current is None:
                return None
            key = _key(embed, current)
            if key not in current.tables:
                shared = current.positions is None or current.layout.shared
                made: tuple[Any, ...] = table if shared else _per_sample_tables(embed, args[0], current)
                if current.staged:
                    made = tuple(own_tables(part, current.layout.batch) for part in made)
                current.tables[key] = made
            tables = current.tables[key]
            if current.rows is not None and isinstance(tables[0], PerSampleTable):
                tables = tuple(table.rows(current.rows) for table in tables)
            if current.fresh is None:
                return tables
            text, tokens = current.call["txt_ids"].shape[-2], current.fresh.tokens
            assert tokens is not None
            places = current.fresh.joint(args[0].shape[-2], text, text + tokens.shape[1])
            return tuple(pick(table, places) for table in tables)

        embed = module.pos_embed
        return [embed.register_forward_pre_hook(Hook(shrink)), embed.register_forward_hook(Hook(rotary))]

    def text_attention(self, attention: Any, **inputs: Any) -> Tensor:
        return text_attention(attention, **inputs)

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.x_embedder(call["hidden_states"])
        levels = [call[name].to(hidden.dtype) * 1000 for name in ("timestep", "guidance") if call.get(name) is not None]
        embedding = transformer.time_text_embed(*levels, call["pooled_projections"])
        return transformer.transformer_blocks[0].norm1(hidden, emb=embedding)[0]


def _key(embed: nn.Module, call: LayoutCall) -> tuple[int, ...]:
    """Of a table: whose it is, for which layout, and how many position ids it has, text and image."""
    return id(embed), id(call.layout), call.call["txt_ids"].shape[-2] + call.call["img_ids"].shape[-2]


def _per_sample_tables(embed: Any, ids: Tensor, call: LayoutCall) -> tuple[PerSampleTable, ...]:
    """Rotary tables (cos, sin) whose rows of the layout's tokens have each sample's own positions."""
    text = call.call["txt_ids"].shape[-2]
    rows = ids.expand(call.layout.batch, -1, -1).clone()
    assert call.positions is not None
    rows[:, text : text + call.layout.tokens, 1:] = call.positions
    return tuple(PerSampleTable(t.unflatten(0, (len(rows), -1))) for t in embed.forward(rows.flatten(0, 1)))


def text_attention(
    attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, image_rotary_emb: Any, **_: Any
) -> Tensor:
    """Share of each image token's attention that falls on the text, mean over heads: (B, image tokens)."""
    query, key, text_key = attention_heads(attention, hidden_states, encoder_hidden_states)
    text = encoder_hidden_states.shape[1]
    keys = apply_rotary_emb(torch.cat([text_key, key], 1), image_rotary_emb, sequence_dim=1)
    padded = torch.cat([torch.zeros_like(text_key), query], 1)
    queries = apply_rotary_emb(padded, image_rotary_emb, sequence_dim=1)[:, text:]
    return text_share(queries, keys[:, text:], keys[:, :text])
