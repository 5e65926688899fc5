"""FLUX.2: packed tokens (B, N, 4 C), positions as ids (picture, row, column, word), text and image placed apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.counted import CountedAdapter, flux_blocks, row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.packed import PackedAdapter
from ralu_cache.adapters.protocols import LayoutCall
from ralu_cache.adapters.rotary import PerSampleTable, kept_tables, pick
from ralu_cache.adapters.sparse_flux2 import Flux2SparseProcessor
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.report.row_flops import Part, StackCost


class Flux2Adapter(CountedAdapter, PackedAdapter):
    """`Flux2Transformer2DModel` under the pipelines of dev and klein.

    The canvas has the autoencoder's channels at their own resolution, normalised as the pipelines have them: they pack
    2x2 pixels and normalise each of the four places by itself, which all but agree. Reference tokens ride along at full
    resolution. The guidance of dev is an argument; klein's is a second call.
    """

    family = "flux2"
    default_preset = "ralu-8x"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline")
    processor = Flux2SparseProcessor
    batched = ("hidden_states", "encoder_hidden_states", "timestep", "guidance")

    def __init__(self, transformer: Any) -> None:
        self.channels = transformer.out_channels
        self._stack = _costs(transformer)
        self._guidance = row_flops(transformer.time_guidance_embed.guidance_embedder)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, Flux2Transformer2DModel)

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        ids = _of_one(call["img_ids"])
        rows, columns = (torch.where(ids[:, :1] == 0, ids[:, 1:3], 0).amax(0) + 1).int().tolist()
        return rows, columns

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures are noised as (B, 4 C, H / 2, W / 2) before they are packed."""
        packed = latents.ndim == 4 and latents.shape[1] == self.channels
        return F.pixel_shuffle(latents, self.patch) if packed else super().to_image(latents, grid)

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        packed = like.ndim == 4 and like.shape[1] == self.channels
        return F.pixel_unshuffle(image, self.patch) if packed else super().from_image(image, like)

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        ids, count = _of_one(call["img_ids"]), layout.fine_grid[0] * layout.fine_grid[1]
        own = F.pad(positions[0], (1, 1))
        return {**self.pack(call, layout, tokens), "img_ids": torch.cat([own, ids[count:].to(own)])}

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The image's tables are made once a layout, those of samples that differ per sample; the text's are stock."""

        def image_of(ids: Tensor) -> LayoutCall | None:
            call = active()
            return call if call is not None and _are(ids, call.call["img_ids"], call.call["txt_ids"]) else None

        def shrink(embed: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            current = image_of(args[0])
            return None if current is None or _key(embed, current) not in current.tables else (args[0][:1],)

        def rotary(embed: Any, args: tuple[Tensor, ...], table: tuple[Tensor, Tensor]) -> Any:
            current = image_of(args[0])
            if current is None:
                return None
            shared = current.positions is None or current.layout.shared
            tables = kept_tables(
                current, _key(embed, current), lambda: table if shared else _per_sample_tables(embed, args[0], current)
            )
            if current.fresh is None:
                return tables
            assert current.fresh.tokens is not None
            return tuple(pick(table, current.fresh.tokens) for table in tables)

        embed = module.pos_embed
        return [embed.register_forward_pre_hook(Hook(shrink)), embed.register_forward_hook(Hook(rotary))]

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.x_embedder(call["hidden_states"])
        timestep, guidance = (
            None if call.get(name) is None else call[name].to(hidden.dtype) * 1000 for name in ("timestep", "guidance")
        )
        levels = transformer.double_stream_modulation_img(transformer.time_guidance_embed(timestep, guidance))
        shift, scale, *_ = levels[:, None].chunk(6, -1)
        return transformer.transformer_blocks[0].norm1(hidden) * (1 + scale) + shift

    def costs(self, call: Mapping[str, Any]) -> StackCost:
        return self._guided if call.get("guidance") is not None else self._stack

    @cached_property
    def _guided(self) -> StackCost:
        outside = replace(self._stack.outside, sample=self._stack.outside.sample + self._guidance)
        return replace(self._stack, outside=outside)


def _costs(transformer: Any) -> StackCost:
    """What a call costs without guidance; the modulation of all blocks is computed once, before them."""
    embedded = (
        transformer.time_guidance_embed.timestep_embedder, transformer.double_stream_modulation_img,
        transformer.double_stream_modulation_txt, transformer.single_stream_modulation, transformer.norm_out,
    )  # fmt: skip
    outside = Part(
        image=row_flops(transformer.x_embedder, transformer.proj_out),
        text=row_flops(transformer.context_embedder),
        sample=row_flops(*embedded),
    )
    return StackCost(outside, flux_blocks(transformer))


def _of_one(ids: Tensor) -> Tensor:
    """(N, 4): the ids of one sample; they are the same for all."""
    return ids[0] if ids.ndim == 3 else ids


def _are(ids: Tensor, image: Tensor, text: Tensor) -> bool:
    """Whether the ids that are to be embedded are the image's; views of what the model was given.

    Raises ValueError where they are neither the image's nor the text's.
    """
    of_text, of_image = (ids.untyped_storage().data_ptr() == own.untyped_storage().data_ptr() for own in (text, image))
    if of_text == of_image:
        raise ValueError(
            f"img_ids on {image.device} and txt_ids on {text.device} can't be told apart: give both as tensors of "
            "their own on the device of the transformer"
        )
    return of_image


def _key(embed: nn.Module, call: LayoutCall) -> tuple[int, ...]:
    """Of a table: whose it is, for which layout, and how many position ids the image has, references included."""
    return id(embed), id(call.layout), call.call["img_ids"].shape[-2]


def _per_sample_tables(embed: Any, ids: Tensor, call: LayoutCall) -> tuple[PerSampleTable, ...]:
    """Rotary tables (cos, sin) with the layout's tokens of each sample at its own positions."""
    places = ids.expand(call.layout.batch, -1, -1).clone()
    assert call.positions is not None
    places[:, : call.layout.tokens, 1:3] = call.positions
    return tuple(PerSampleTable(t.unflatten(0, (len(places), -1))) for t in embed.forward(places.flatten(0, 1)))
