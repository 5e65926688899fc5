"""Qwen-Image 2.1: one sequence of text, condition images and, last, the image; what comes before it is computed once.

Text and condition images see nothing of the image and no noise level, so a picture's first call computes them with it
and keeps their keys and values; the later calls bring the image's tokens alone, which ask those and each other. They
come in fours: a layout's tokens are filled up, and attention leaves out what fills.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import StackAdapter
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.counted import row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.prefix_qwen21 import FOURS, JointTable, SomeSamples, filled_up, segments, without_filling
from ralu_cache.adapters.protocols import Tokens
from ralu_cache.adapters.rotary import PerSampleTable, Table, factors_at, kept_tables
from ralu_cache.plane.canvas import TokenLayout, patchify, unpatchify
from ralu_cache.report.flops import BlockCost, Part, StackCost, attention_flops


class QwenImage21Adapter(StackAdapter, Tokens):
    """Guidance is a second call, with keys and values of its own. A call that is to read some which none has kept
    (guidance that begins late) computes them."""

    family = "qwen-image-2.1"
    pipelines = ("QwenImage21Pipeline",)
    patch = 1
    others_first = True
    batched = ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "timestep")
    lacks: ClassVar[Mapping[str, str]] = {
        "layers": "the first call runs text and image through each layer, the others the image alone, and what is kept "
        "of a layer is of one form",
        "text attention": "text and condition images are one sequence, and attention keeps neither apart",
    }

    def __init__(self, transformer: Any) -> None:
        if (size := transformer.config.patch_size) != 1:
            raise ValueError(f"patch_size {size} is not supported: expected 1")
        self.channels, self.cost = transformer.out_channels, _cost(transformer)
        self._embed, self._words = row_flops(transformer.img_in), row_flops(transformer.txt_in)
        self._out, self._width = row_flops(transformer.proj_out), transformer.inner_dim
        self._still = transformer.config.causal_condition  # one more row of modulation, at t = 0

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, QwenImage21Transformer2DModel)

    def opened(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        if call.get("kv_cache_mode") == "cached" and call["kv_cache"].get_layer(0).k is None:
            return {**call, "kv_cache_mode": "extract"}
        return call

    def select(self, call: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        """Entry and row 0 of shapes and slots serve any batch. What some samples compute anew is not kept for all."""
        one = {"img_shapes": call["img_shapes"][:1], "img_mask": call["img_mask"][:1]}
        if (cache := call.get("kv_cache")) is not None:
            extracts = call["kv_cache_mode"] == "extract"
            one["kv_cache"] = QwenImage21KVCache(len(self.cost.blocks)) if extracts else SomeSamples(cache, samples)
        return {**super().select(call, samples), **one}

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        return tuple(call["img_shapes"][0][-1][1:])

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        return self.to_image(call["hidden_states"][:, -prod(grid) :], grid)

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        return latents if latents.ndim == 4 else unpatchify(latents, *grid, self.patch)

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        return image if like.ndim == 4 else patchify(image, self.patch)

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        """The image becomes a ribbon of one row, as long as a whole number of slots."""
        *references, (_, rows, columns) = call["img_shapes"][0]
        given, filled = call["hidden_states"], filled_up(layout.tokens)
        image = F.pad(tokens, (0, 0, 0, filled - layout.tokens))
        return {
            **call,
            "hidden_states": torch.cat([given[:, : given.shape[1] - rows * columns], image], 1),
            "img_shapes": [[*references, (1, 1, filled)]],
            "img_mask": call["img_mask"][:, : call["img_mask"].shape[1] - (rows * columns - filled) // FOURS],
        }

    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        before, image, _ = self.image_tokens(prediction, layout.tokens)
        full = patchify(layout.expand(image), self.patch)
        return full if before is None else torch.cat([before, full], 1)

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The layout's rotary factors, made once for it, stand where those of the ribbon were, behind the stock ones
        of what comes before; in every block what fills the ribbon up is left out."""

        def rotary(embed: Any, args: tuple[Any, ...], stock: Tensor) -> Any:
            current = active()
            if current is None or (current.positions is None and not current.staged):
                return None
            count = current.layout.tokens
            before, image, behind = self.image_tokens(stock[None], count)
            frame = embed.axes_dim[0] // 2  # the place in the sequence, the same for the whole image

            def make() -> Sequence[Table]:
                return [image[0, :, frame:] if current.positions is None else _tables(embed, current)]

            (own,) = kept_tables(current, (id(embed), id(current.layout)), make)
            places = own.table if isinstance(own, PerSampleTable) else own[None]
            batch = len(places), -1, -1
            parts = [before, torch.cat([image[..., :frame].expand(batch), places], -1), behind]
            whole = torch.cat([part.expand(batch) for part in parts if part is not None], 1)
            return JointTable(whole) if isinstance(own, PerSampleTable) else whole[0]

        def fit(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            current = active()
            if current is None or current.positions is None or current.layout.tokens % FOURS == 0:
                return None
            return (), without_filling(args, kwargs, current.layout.tokens, self.rows(current.call)[2])

        return [
            module.pos_embed.register_forward_hook(Hook(rotary)),
            *(block.register_forward_pre_hook(Hook(fit), with_kwargs=True) for block in self.blocks(module)),
        ]

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.transformer_blocks)

    def image_tokens(self, hidden: Tensor, image: int) -> tuple[Tensor | None, Tensor, Tensor | None]:
        start = hidden.shape[1] - filled_up(image)
        end = start + image
        return hidden[:, :start] if start else None, hidden[:, start:end], hidden[:, end:] if image % FOURS else None

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.img_in(call["hidden_states"][:, -prod(self.grid(call)) :])
        levels = transformer.time_text_embed(call["timestep"].to(hidden.dtype), hidden)
        scale, *_ = transformer.modulation(levels)[:, None].chunk(4, -1)
        return transformer.transformer_blocks[0].img_norm1(hidden) * (1 + scale)

    def later(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**call, "kv_cache_mode": "cached"} if call.get("kv_cache_mode") == "extract" else call

    def rows(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """What comes before the image counts as text."""
        references = self._references(call)
        words = call["encoder_hidden_states"].shape[1] - references // FOURS
        return len(call["hidden_states"]), prod(call["img_shapes"][0][-1]), words + references

    def _references(self, call: Mapping[str, Any]) -> int:
        return sum(prod(shape) for shape in call["img_shapes"][0][:-1])

    def flops(self, call: Mapping[str, Any]) -> float:
        """With the blocks' work on what comes before the image, in a call that computes it."""
        if call.get("kv_cache_mode") == "cached":
            return super().flops(call)
        batch, _, before = self.rows(call)
        block = self.cost.blocks[0]
        asked = sum(attention_flops(tokens, end, self._width) for tokens, end in segments(call))
        each = before * (block.attention.image + block.mlp.image) + asked
        return super().flops(call) + batch * len(self.cost.blocks) * each

    def besides(self, call: Mapping[str, Any]) -> int:
        batch, _, before = self.rows(call)
        each = self._references(call) * self._embed + call["encoder_hidden_states"].shape[1] * self._words
        each += (call.get("kv_cache_mode") != "cached") * before * self._out
        return batch * each + self._still * self.cost.outside.sample


def _cost(transformer: Any) -> StackCost:
    """Image tokens ask each other and what comes before them; one modulation serves all blocks."""
    once = row_flops(transformer.time_text_embed, transformer.modulation, transformer.norm_out)
    outside = Part(image=row_flops(transformer.img_in, transformer.proj_out), sample=once)
    wide = {"among_image": transformer.inner_dim, "cross": transformer.inner_dim}
    blocks = [
        BlockCost(Part(image=row_flops(b.attn), **wide), Part(image=row_flops(b.img_mlp)))
        for b in transformer.transformer_blocks
    ]
    return StackCost(outside, blocks)


def _tables(embed: Any, call: LayoutCall) -> Table:
    """Complex factors of rows and columns at the places of the call's tokens, counted from the picture's centre."""
    assert call.positions is not None
    positions = call.positions[:1] if call.layout.shared else call.positions
    axes = zip(embed.freqs[1:], positions.unbind(-1), call.extent, strict=True)
    found = torch.cat(
        [factors_at(table.to(positions.device), place - (extent - extent // 2)) for table, place, extent in axes], -1
    )
    return found[0] if call.layout.shared else PerSampleTable(found)
