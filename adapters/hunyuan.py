"""HunyuanVideo 1.5: videos (B, C, F, H, W), text of two encoders and of a picture, all in one joint attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import HunyuanVideo15Transformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import TextImageAdapter
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.counted import flux_blocks, row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.rotary import PerSampleTable, kept_tables, pick
from ralu_cache.adapters.sparse_hunyuan import HunyuanSparseProcessor
from ralu_cache.adapters.video import VideoAdapter, places_of
from ralu_cache.report.flops import Part, StackCost

TEXTS = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")


class HunyuanAdapter(VideoAdapter, TextImageAdapter):
    """`HunyuanVideo15Transformer3DModel` under text-to-video and image-to-video.

    Conditioning channels ride behind the latents: coarse tokens get their block means. Guidance is what the pipeline's
    guider makes of a second call.
    """

    family = "hunyuan-video-1.5"
    pipelines = ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline")
    processor = HunyuanSparseProcessor
    conditions = (*TEXTS, "encoder_attention_mask", "encoder_attention_mask_2")
    batched = ("hidden_states", "timestep", "timestep_r", *conditions)

    def __init__(self, transformer: Any) -> None:
        config = transformer.config
        if config.patch_size_t != 1:
            raise ValueError(f"patch_size_t={config.patch_size_t} is not supported, only 1")
        self.patch, self.channels = config.patch_size, config.out_channels or config.in_channels
        time = transformer.time_embed
        image = row_flops(transformer.x_embedder, transformer.proj_out)
        once = row_flops(time.timestep_embedder, transformer.norm_out)
        self.cost = StackCost(Part(image=image, sample=once), flux_blocks(transformer))
        self._meanflow, self._refining = row_flops(time.timestep_embedder_r), _refining(transformer)
        self._others = row_flops(transformer.context_embedder_2), row_flops(transformer.image_embedder)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, HunyuanVideo15Transformer3DModel)

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The layout's rotary table stands where that of the ribbon was; it is made once a layout."""

        def rotary(rope: Any, args: tuple[Any, ...], tables: tuple[Tensor, Tensor]) -> Any:
            current = active()
            if current is None:
                return None
            found: tuple[Any, ...] = tables
            if current.positions is not None or current.staged:
                key = id(rope), id(current.layout)
                found = kept_tables(
                    current, key, lambda: tables if current.positions is None else _tables(rope, current)
                )
            if current.fresh is None:
                return found
            assert current.fresh.tokens is not None
            return tuple(pick(table, current.fresh.tokens) for table in found)

        return [module.rope.register_forward_hook(Hook(rotary))]

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.x_embedder(call["hidden_states"])
        embedding = transformer.time_embed(call["timestep"], timestep_r=call.get("timestep_r"))
        return transformer.transformer_blocks[0].norm1(hidden, emb=embedding)[0]

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        rows, columns = self.grid(call)
        return len(call["hidden_states"]), rows * columns, sum(call[name].shape[1] for name in TEXTS)

    def besides(self, call: Mapping[str, Any]) -> int:
        """Each kind of text has layers of its own."""
        words, glyphs, seen = (call[name].shape[1] for name in TEXTS)
        second, picture = self._others
        texts = self._refining.flops(0, words) + second * glyphs + picture * seen
        return len(call["hidden_states"]) * (texts + self._meanflow * (call.get("timestep_r") is not None))


def _refining(transformer: Any) -> Part:
    """Of the first kind of text."""
    first, refined = transformer.context_embedder, transformer.context_embedder.token_refiner.refiner_blocks
    return Part(
        text=row_flops(first.proj_in) + sum(row_flops(block.attn, block.ff) for block in refined),
        sample=row_flops(first.time_text_embed) + sum(row_flops(block.norm_out) for block in refined),
        among_text=transformer.norm_out.linear.in_features * len(refined),
    )


def _tables(rope: Any, call: LayoutCall) -> tuple[Any, ...]:
    """Cosines and sines of the call's tokens at frame, row and column; at whole places the stock ones, bit for bit."""
    axes = []
    for dim, place in zip(rope.rope_dim, places_of(call), strict=True):
        pair = get_1d_rotary_pos_embed(dim, place.flatten().float(), rope.theta, use_real=True)
        axes.append([table.unflatten(0, place.shape) for table in pair])
    tables = [torch.cat(parts, -1) for parts in zip(*axes, strict=True)]
    return tuple(table[0] if call.layout.shared else PerSampleTable(table) for table in tables)
