"""FLUX.1: packed tokens (B, N, 4 C), positions as (0, row, column) ids, one rotary table for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.counted import flux_cost, row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.packed import PackedAdapter, of_one
from ralu_cache.adapters.ranks import ranks_of
from ralu_cache.adapters.rotary import Table, kept_tables, per_sample_tables, pick
from ralu_cache.adapters.sparse_flux import FluxSparseProcessor
from ralu_cache.plane.canvas import TokenLayout


class FluxAdapter(PackedAdapter):
    """`FluxTransformer2DModel` under text-to-image, img2img, inpaint, Fill, Kontext, Control and ControlNet pipelines.

    Fill and Control concatenate conditioning channels to the latents: coarse tokens get their block means. Kontext
    appends reference tokens: they ride along at full resolution.
    """

    family = "flux"
    pipelines: tuple[str, ...] = (
        "FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxKontextPipeline",
        "FluxKontextInpaintPipeline", "FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline",
        "FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline",
    )  # fmt: skip
    processor = FluxSparseProcessor
    ranked = True
    conditions = ("encoder_hidden_states", "pooled_projections")
    control: tuple[str, ...] = ("controlnet_block_samples", "controlnet_single_block_samples")
    batched: tuple[str, ...] = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")

    def __init__(self, transformer: Any) -> None:
        self.channels = transformer.out_channels
        self.cost = flux_cost(transformer, row_flops(transformer.time_text_embed, transformer.norm_out))

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, FluxTransformer2DModel)

    def coarse_share(self, image: int, words: int, others: int) -> float:
        """See `Cost.coarse_share`; CLIP's text is pooled, and adds no tokens."""
        return self.counted_share(image, words)

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        ids = of_one(call["img_ids"])
        last = (ids[:, 0] == ids[0, 0]).sum() - 1  # of the picture's own tokens, which come first, row by row
        rows, columns = (ids.index_select(0, last[None])[0, 1:] - ids[0, 1:] + 1).int().tolist()
        return rows, columns

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        ids, count = of_one(call["img_ids"]), layout.fine_grid[0] * layout.fine_grid[1]
        own = F.pad(positions[0], (1, 0)) + ids[0]
        return {**self.pack(call, layout, tokens), "img_ids": torch.cat([own, ids[count:].to(own)])}

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The rotary tables of a layout are made once; those of samples that differ are made per sample."""

        def shrink(embed: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            current = active()
            return None if current is None or _key(embed, current) not in current.tables else (args[0][:1],)

        def rotary(embed: Any, args: tuple[Tensor, ...], table: tuple[Tensor, Tensor]) -> Any:
            current = active()
            if current is None:
                return None
            shared, text = current.positions is None or current.layout.shared, current.call["txt_ids"].shape[-2]

            def make() -> Sequence[Table]:
                if shared:
                    return table
                ids, ranks = args[0], ranks_of(module)
                if ranks is not None:  # the model was given this rank's alone
                    ids = torch.cat([of_one(current.call["txt_ids"]), of_one(current.call["img_ids"])])
                return per_sample_tables(embed, ids, current, ranks, text)

            tables = kept_tables(current, _key(embed, current), make)
            if current.fresh is None:
                return tables
            tokens = current.fresh.tokens
            assert tokens is not None
            places = current.fresh.joint(args[0].shape[-2], text, text + tokens.shape[1])
            return tuple(pick(table, places) for table in tables)

        embed = module.pos_embed
        return [embed.register_forward_pre_hook(Hook(shrink)), embed.register_forward_hook(Hook(rotary))]

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
