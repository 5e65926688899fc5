"""Wan 2.1 and 2.2: videos (B, C, F, H, W), rotary positions of frame, row and column, text by cross-attention.

A layout's tokens travel as a *ribbon*, see `video.py`; for the call the rotary table is replaced by that of the tokens'
own positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.calls import LayoutCall, Setting
from ralu_cache.adapters.counted import row_flops
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.ranks import Ranks, ranks_of
from ralu_cache.adapters.sparse_wan import WanSparseProcessor
from ralu_cache.adapters.video import VideoAdapter, places_of
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import take
from ralu_cache.report.flops import BlockCost, Part, StackCost


class WanAdapter(VideoAdapter):
    """`WanTransformer3DModel` under text-to-video and image-to-video pipelines, one transformer or two (2.2).

    Image-to-video concatenates conditioning channels to the latents: coarse tokens get their block means. The tokens of
    the conditioning picture ride along with the text. Guidance is a second call.
    """

    family = "wan"
    pipelines = ("WanPipeline", "WanImageToVideoPipeline")
    processor = WanSparseProcessor
    ranked = True
    batched = ("hidden_states", "encoder_hidden_states", "timestep")
    lacks: ClassVar[Mapping[str, str]] = {
        "text attention": "the text has an attention of its own, of which all tokens give it the same share"
    }

    def __init__(self, transformer: Any) -> None:
        config = transformer.config
        frames, self.patch, width = config.patch_size
        if frames != 1 or width != self.patch:
            raise ValueError(f"patch_size {tuple(config.patch_size)} is not supported, only (1, p, p)")
        self.channels = config.out_channels or config.in_channels
        self.cost, embedder = _cost(transformer), transformer.condition_embedder
        self._time = row_flops(embedder.time_embedder, embedder.time_proj)
        self._text, self._picture = row_flops(embedder.text_embedder), row_flops(embedder.image_embedder)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, WanTransformer3DModel)

    def check(self, call: Mapping[str, Any], setting: Setting) -> None:
        """Time steps of tokens (2.2's 5B model): image-to-video keeps the first frame clean, which no stage can."""
        timestep = call["timestep"]
        if timestep.ndim == 1:
            return
        if setting.staged and not bool((timestep == timestep[:, :1]).all()):
            raise ValueError(
                f"time steps that differ between tokens, here {float(timestep.min()):g} to {float(timestep.max()):g} "
                "(image-to-video with expand_timesteps), are not supported with spatial stages; use spatial=None"
            )
        if setting.caches == "rows":
            raise ValueError(
                "a time step for each token (expand_timesteps) is not supported with row-sparse recompute; use another "
                "temporal policy"
            )

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        timestep = call["timestep"]  # of tokens: all the same, see `check`
        return {**super().shorten(call, layout, tokens, positions), "timestep": timestep[..., : layout.tokens]}

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """The stock table is shorter than a ribbon may be: it is asked for one token (of each rank), and the hook gives
        the others."""

        def spare(rope: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            current, ranks = active(), ranks_of(module)
            count = 1 if ranks is None else ranks.count
            return None if current is None or current.positions is None else (args[0][..., : count * self.patch],)

        def rotary(rope: Any, args: tuple[Tensor, ...], tables: tuple[Tensor, Tensor]) -> Any:
            current = active()
            if current is None:
                return None
            if current.positions is not None or current.staged:
                key = id(rope), id(current.layout)
                if key not in current.tables:
                    own = None if current.positions is None else rotary_tables(rope, current)
                    made = tables if own is None else _divided(own, ranks_of(module))
                    copies = current.layout.batch if len(made[0]) == 1 else 1  # as in `own_tables`
                    current.tables[key] = tuple(table.repeat(copies, 1, 1, 1) for table in made)
                tables = current.tables[key]
                if current.samples is not None:
                    cos, sin = tables
                    tables = cos[current.samples], sin[current.samples]
            if current.fresh is None:
                return tables
            picked = current.fresh.tokens
            assert picked is not None
            return tuple(take(table[:, :, 0].expand(len(picked), -1, -1), picked)[:, :, None] for table in tables)

        return [module.rope.register_forward_pre_hook(Hook(spare)), module.rope.register_forward_hook(Hook(rotary))]

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.blocks)

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """The text is read by the blocks, and does not run through them: no text tokens."""
        rows, columns = self.grid(call)
        return len(call["hidden_states"]), rows * columns, 0

    def rows(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        batch, image, _ = self.size(call)
        return batch, image, call["encoder_hidden_states"].shape[1] + _picture_tokens(call)

    def besides(self, call: Mapping[str, Any]) -> int:
        """A time step for each sample or for each token, the text, and a conditioning picture."""
        steps = call["timestep"].numel() // len(call["timestep"])
        read = self._text * call["encoder_hidden_states"].shape[1] + self._picture * _picture_tokens(call)
        return len(call["hidden_states"]) * (self._time * steps + read)

    def select(self, call: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        chosen = super().select(call, samples)
        if (picture := call.get("encoder_hidden_states_image")) is not None:  # one a sample, or a first and a last one
            parts = picture.unflatten(0, (len(call["hidden_states"]), -1))
            chosen["encoder_hidden_states_image"] = parts[samples].flatten(0, 1)
        return chosen

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.patch_embedding(call["hidden_states"]).flatten(2).transpose(1, 2)
        timestep, no_text = call["timestep"], call["encoder_hidden_states"][:, :0]
        count = timestep.shape[1] if timestep.ndim == 2 else None
        levels = transformer.condition_embedder(timestep.flatten(), no_text, timestep_seq_len=count)[1]
        block = transformer.blocks[0]
        table = block.scale_shift_table + levels.view(len(timestep), -1, 6, hidden.shape[-1]).float()
        return (block.norm1(hidden.float()) * (1 + table[:, :, 1]) + table[:, :, 0]).type_as(hidden)


def _divided(tables: tuple[Tensor, Tensor], ranks: Ranks | None) -> tuple[Tensor, Tensor]:
    """Of tables (B, n, 1, d) the part that this rank's tokens need."""
    return tables if ranks is None else (ranks.own(tables[0]), ranks.own(tables[1]))


def _picture_tokens(call: Mapping[str, Any]) -> int:
    """Of the conditioning picture, or of a first and a last one, of each sample."""
    picture = call.get("encoder_hidden_states_image")
    return 0 if picture is None else picture.shape[0] * picture.shape[1] // len(call["timestep"])


def _cost(transformer: Any) -> StackCost:
    """Text and picture tokens have no blocks of their own, but each block projects them anew."""
    blocks = []
    for block in transformer.blocks:
        own, text = block.attn1, block.attn2
        image = row_flops(own.to_q, own.to_k, own.to_v, own.to_out, text.to_q, text.to_out)
        read = row_flops(text.to_k, text.to_v)
        attention = Part(image=image, text=read, among_image=own.inner_dim, cross=text.inner_dim)
        blocks.append(BlockCost(attention, Part(image=row_flops(block.ffn))))
    return StackCost(Part(image=row_flops(transformer.patch_embedding, transformer.proj_out)), blocks)


def rotary_tables(rope: Any, call: LayoutCall) -> tuple[Tensor, Tensor]:
    """The cosines and sines (B, n, 1, d) of the call's tokens, or (1, n, 1, d) where all samples agree.

    At whole positions they are those of the stock table, bit for bit.
    """
    axes = zip((rope.t_dim, rope.h_dim, rope.w_dim), places_of(call), strict=True)
    cos, sin = zip(*(_axis(dim, place, rope.freqs_cos) for dim, place in axes), strict=True)
    return torch.cat(cos, -1)[:, :, None], torch.cat(sin, -1)[:, :, None]


def _axis(dim: int, place: Tensor, like: Tensor) -> list[Tensor]:
    """Cosines and sines (B, n, dim) of one axis; computed where and as the stock table is: on the host, in float64."""
    values, index = place.unique(return_inverse=True)
    tables = get_1d_rotary_pos_embed(
        dim, values.cpu().double(), use_real=True, repeat_interleave_real=True, freqs_dtype=torch.float64
    )
    return [table.to(like)[index] for table in tables]
