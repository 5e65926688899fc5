"""Qwen-Image: packed tokens (B, N, 4 C), positions as complex rotary factors, counted from the picture's centre."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.counted import joint_attention, row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.packed import TokenwiseAdapter
from ralu_cache.adapters.ranks import Ranks, ranks_of
from ralu_cache.adapters.rotary import PerSampleTable, Table, factors_at, kept_tables, pick
from ralu_cache.adapters.sparse_qwen import QwenSparseProcessor
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.report.flops import BlockCost, Part, StackCost


class QwenAdapter(TokenwiseAdapter):
    """`QwenImageTransformer2DModel` under text-to-image, img2img, inpaint, edit and ControlNet pipelines.

    The edit pipelines append reference tokens: they ride along at full resolution. Guidance is two calls.
    """

    family = "qwen-image"
    pipelines = (
        "QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline", "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline", "QwenImageEditInpaintPipeline", "QwenImageControlNetPipeline",
        "QwenImageControlNetInpaintPipeline",
    )  # fmt: skip
    processor = QwenSparseProcessor
    ranked = True
    control = ("controlnet_block_samples",)
    batched = ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "timestep")

    def __init__(self, transformer: Any) -> None:
        self.channels = transformer.out_channels * self.patch**2
        self.cost = _cost(transformer)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        """The layered model, whose rotary positions count layers, is another one."""
        return isinstance(transformer, QwenImageTransformer2DModel) and isinstance(transformer.pos_embed, QwenEmbedRope)

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        _, rows, columns = _images(call["img_shapes"])[0]
        return rows, columns

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image-to-image pipelines noise their latents unpacked, as (B, 1, C, H, W)."""
        return latents[:, 0] if latents.ndim == 5 else super().to_image(latents, grid)

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        return image[:, None] if like.ndim == 5 else super().from_image(image, like)

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        """The image becomes a ribbon of one row; the model also counts its tokens by its shape."""
        _, *references = _images(call["img_shapes"])
        return {**self.pack(call, layout, tokens), "img_shapes": [[(1, 1, layout.tokens), *references]]}

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The layout's rotary factors stand where those of its grid were; they are made once a layout."""

        def resize(embed: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            current = active()
            if current is None or current.positions is None:
                return None
            _, *references = _images(args[0])
            return ([[(1, *current.extent), *references]], *args[1:]), kwargs

        def rotary(embed: Any, args: tuple[Any, ...], tables: tuple[Tensor, Tensor]) -> Any:
            current = active()
            if current is None:
                return None
            image: Table = tables[0]
            if current.positions is not None or current.staged:
                key = id(embed), id(current.layout)
                (image,) = kept_tables(current, key, lambda: [_table(embed, current, tables[0], ranks_of(module))])
            if current.fresh is not None:
                assert current.fresh.tokens is not None
                image = pick(image, current.fresh.tokens)
            return image, tables[1]

        def fit(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            current = active()
            if current is None or current.fresh is None:
                return None
            assert current.fresh.tokens is not None  # all of the image, the first in the index
            index = kwargs["modulate_index"][:, : current.fresh.tokens.shape[1]]
            return args, {**kwargs, "modulate_index": index}

        handles = [
            module.pos_embed.register_forward_pre_hook(Hook(resize), with_kwargs=True),
            module.pos_embed.register_forward_hook(Hook(rotary)),
        ]
        if module.config.get("zero_cond_t"):
            handles += [block.register_forward_pre_hook(Hook(fit), with_kwargs=True) for block in self.blocks(module)]
        return handles

    def select(self, call: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        """One entry of shapes serves any batch: they are the same for all samples."""
        return {**super().select(call, samples), "img_shapes": call["img_shapes"][:1]}

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        """Reference tokens as if they were the image's; nobody looks at theirs."""
        block, hidden = transformer.transformer_blocks[0], transformer.img_in(call["hidden_states"])
        embedding = transformer.time_text_embed(call["timestep"].to(hidden.dtype), hidden)
        shift, scale, *_ = block.img_mod(embedding)[:, None].chunk(6, -1)
        return block.img_norm1(hidden) * (1 + scale) + shift


def _cost(transformer: Any) -> StackCost:
    """With `zero_cond_t` a second time step, 0, modulates the reference tokens (Qwen-Image-Edit)."""
    levels = 1 + transformer.config.zero_cond_t
    outside = Part(
        image=row_flops(transformer.img_in, transformer.proj_out),
        text=row_flops(transformer.txt_in),
        sample=levels * row_flops(transformer.time_text_embed) + row_flops(transformer.norm_out),
    )
    blocks = [
        BlockCost(
            joint_attention(block.attn),
            Part(image=row_flops(block.img_mlp), text=row_flops(block.txt_mlp)),
            Part(sample=levels * row_flops(block.img_mod) + row_flops(block.txt_mod)),
        )
        for block in transformer.transformer_blocks
    ]
    return StackCost(outside, blocks)


def _images(shapes: Any) -> list[tuple[int, int, int]]:
    """(frames, rows, columns) of each image of a sample, the one being made first; the same for all samples."""
    first = shapes[0]
    return list(first) if isinstance(first, list) else [first]


def _table(embed: Any, call: LayoutCall, stock: Tensor, ranks: Ranks | None) -> Table:
    """Factors of the layout's tokens, and behind them those that `stock` has behind the grid of the call's extent.

    With ranks `stock` has this rank's part of all, and so has what is given.
    """
    if call.positions is None:
        return stock
    if ranks is not None:
        stock = ranks.whole(stock, 0)
    rows, columns = call.extent
    down, along = (call.positions[:1] if call.layout.shared else call.positions).unbind(-1)
    places = torch.stack([down - (rows - rows // 2), along - (columns - columns // 2)], -1)
    own = rotary_factors(embed, places)
    table = torch.cat([own, stock[rows * columns :].expand(len(own), -1, -1)], 1)
    if ranks is not None:
        table = ranks.own(table)
    return table[0] if call.layout.shared else PerSampleTable(table)


def rotary_factors(embed: Any, places: Tensor) -> Tensor:
    """Complex factors (B, n, d / 2) at (row, column) `places` (B, n, 2) from the centre, frame 0."""
    table = torch.cat([embed.pos_freqs, embed.neg_freqs]).to(places.device)
    frame, *tables = table.split([dim // 2 for dim in embed.axes_dim], -1)
    down, along = (factors_at(table, axis) for table, axis in zip(tables, places.unbind(-1), strict=True))
    return torch.cat([frame[0].expand(*down.shape[:-1], -1), down, along], -1)
