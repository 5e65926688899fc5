"""FLUX.2: packed tokens (B, N, 4 C), positions as ids (picture, row, column, word), text and image placed apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.counted import flux_cost, row_flops
from ralu_cache.adapters.hooks import Hook, is_first_placed, placed_after
from ralu_cache.adapters.packed import PackedAdapter, of_one
from ralu_cache.adapters.ranks import ranks_of
from ralu_cache.adapters.rotary import Table, kept_tables, per_sample_tables, pick
from ralu_cache.adapters.sparse_flux2 import Flux2SparseProcessor
from ralu_cache.plane.canvas import TokenLayout


class Flux2Adapter(PackedAdapter):
    """`Flux2Transformer2DModel` under the pipelines of dev and klein.

    The canvas has the autoencoder's channels at their own resolution, normalised as the pipelines have them: they pack
    2x2 pixels and normalise each of the four places by itself, which all but agree. Reference tokens ride along at full
    resolution. The guidance of dev is an argument; klein's is a second call.
    """

    family = "flux2"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline")
    processor = Flux2SparseProcessor
    ranked = True
    batched = ("hidden_states", "encoder_hidden_states", "timestep", "guidance")

    def __init__(self, transformer: Any) -> None:
        self.channels = transformer.out_channels
        once = (  # the modulation of all blocks is computed before them
            transformer.time_guidance_embed.timestep_embedder, transformer.double_stream_modulation_img,
            transformer.double_stream_modulation_txt, transformer.single_stream_modulation, transformer.norm_out,
        )  # fmt: skip
        self.cost = flux_cost(transformer, row_flops(*once))
        self._guidance = row_flops(transformer.time_guidance_embed.guidance_embedder)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, Flux2Transformer2DModel)

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        ids = of_one(call["img_ids"])
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
        ids, count = of_one(call["img_ids"]), layout.fine_grid[0] * layout.fine_grid[1]
        own = F.pad(positions[0], (1, 1))
        ids = torch.cat([own, ids[count:].to(own)])[None]  # of a batch, as the pipelines give them
        return {**self.pack(call, layout, tokens), "img_ids": ids}

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The image's tables are those of the layout, made once for it; the text's, which follow, are stock."""

        def rotary(embed: Any, args: tuple[Tensor, ...], table: tuple[Tensor, Tensor]) -> Any:
            current = active()
            if current is None or not is_first_placed():
                return None
            key, shared = (id(embed), id(current.layout)), current.positions is None or current.layout.shared

            def make() -> Sequence[Table]:
                if shared:
                    return table
                ranks = ranks_of(module)  # with them the model was given this rank's ids alone
                ids = args[0] if ranks is None else of_one(current.call["img_ids"])
                return per_sample_tables(embed, ids, current, ranks)

            tables = kept_tables(current, (*key, len(args[0])), make)
            if current.fresh is None:
                return tables
            assert current.fresh.tokens is not None
            return tuple(pick(table, current.fresh.tokens) for table in tables)

        return [placed_after(module.x_embedder, active), module.pos_embed.register_forward_hook(Hook(rotary))]

    def landmarks(self, module: Any) -> list[nn.Module]:
        return [*super().landmarks(module), module.x_embedder]

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

    def besides(self, call: Mapping[str, Any]) -> int:
        return 0 if call.get("guidance") is None else len(call["hidden_states"]) * self._guidance
