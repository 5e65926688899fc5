"""Rotary tables: those of which every sample has its own, and how each family turns queries and keys by them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.ranks import Ranks
from ralu_cache.plane.token_map import take


class PerSampleTable:
    """A rotary table (B, S, D) that stands where stock attention expects a shared (S, D) one.

    Stock `apply_rotary_emb` indexes the table once, and `apply_rotary_emb_qwen` unsqueezes it once, to add the batch
    and head axes; here the batch axis is there already, so both yield (B, S, 1, D).
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __getitem__(self, index: object) -> Tensor:
        return self.table[:, :, None]

    def unsqueeze(self, dim: int) -> Tensor:
        return self.table[:, :, None]

    @classmethod
    def __torch_function__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`torch.cat` of tables, some of which all samples share, along the tokens, as FLUX.2 joins text and image."""
        if function is not torch.cat:
            return NotImplemented
        tables = args[0]
        batch = next(len(table.table) for table in tables if isinstance(table, cls))
        own = [table.table if isinstance(table, cls) else table.expand(batch, -1, -1) for table in tables]
        return cls(torch.cat(own, 1))


Table = Tensor | PerSampleTable
"""One that all samples share, (S, D), or one for each."""


def kept_tables(call: LayoutCall, key: Hashable, make: Callable[[], Sequence[Table]]) -> tuple[Table, ...]:
    """The tables of the call's layout, made once, for the call's samples.

    In a run with stages shared ones become such that each sample of a batch has its own: then all its calls bring
    tables of one kind, and compiled blocks are compiled again for each kind.
    """
    if key not in call.tables:
        made, batch = make(), call.layout.batch
        if call.staged and batch > 1:
            made = [t if isinstance(t, PerSampleTable) else PerSampleTable(t.repeat(batch, 1, 1)) for t in made]
        call.tables[key] = tuple(made)
    tables = call.tables[key]
    if call.samples is None:
        return tables
    return tuple(PerSampleTable(t.table[call.samples]) if isinstance(t, PerSampleTable) else t for t in tables)


def per_sample_tables(
    embed: Any, ids: Tensor, call: LayoutCall, ranks: Ranks | None, text: int = 0
) -> tuple[PerSampleTable, ...]:
    """Rotary tables (cos, sin) in which the layout's tokens of each sample lie at its own positions.

    ids: (N, 3 or 4) of one sample, picture, row and column first, as `embed` takes them; the layout's tokens follow
    `text` others. ranks: among which the tokens are divided, those before the layout's by themselves; the tables are of
    this rank's.
    """
    assert call.positions is not None
    places = ids.expand(call.layout.batch, -1, -1).clone()
    origin = ids[text, 1:3] - call.positions[0, 0]
    places[:, text : text + call.layout.tokens, 1:3] = call.positions + origin
    tables = [table.unflatten(0, (len(places), -1)) for table in embed.forward(places.flatten(0, 1))]
    if ranks is not None:
        parts = [(table[:, :text], table[:, text:]) for table in tables]
        tables = [torch.cat([ranks.own(part) for part in pair if part.shape[1]], 1) for pair in parts]
    return tuple(map(PerSampleTable, tables))


def pick(table: Table, places: Tensor) -> PerSampleTable:
    """A table for the tokens at some places (k, q) of each sample's sequence."""
    if isinstance(table, PerSampleTable):
        return PerSampleTable(take(table.table, places))
    return PerSampleTable(table[places])


def factors_at(table: Tensor, places: Tensor) -> Tensor:
    """Complex factors (..., d / 2) at any `places` (...), from a model's own table (N, d / 2) of those at whole ones.

    Row i of the table is place i, and row -i place -i. It is read at the whole place below and turned by the rest: at
    whole places nothing is turned.
    """
    below = places.floor()
    turn = (places - below)[..., None] * table[1].angle()  # at place 1 the angle is the rate
    return table[below.long()] * torch.polar(torch.ones_like(turn), turn)


def turned_by(heads: Tensor, factors: Tensor) -> Tensor:
    """Pairs of neighbouring channels of (B, L, H, d) turned by complex factors (B, L, d / 2), as in Z-Image."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * factors[:, :, None]).flatten(3).type_as(heads)


def turned(text: Tensor, image: Tensor, rotary: Any) -> Tensor:
    """Heads of text and image (B, m or n, H, d), in this order, turned by what their attention is given.

    rotary: None for nothing, (cos, sin) of the whole sequence as in FLUX, or of the image alone as in HunyuanVideo;
    complex factors (image, text) as in Qwen-Image, or one tensor of them for all as in Z-Image, where the text is among
    the image's tokens.
    """
    if rotary is None:
        return torch.cat([text, image], 1)
    if isinstance(rotary, Tensor):
        return turned_by(image, rotary)
    if _plain(rotary[0]).is_complex():
        streams = zip((text, image), (rotary[1], rotary[0]), strict=True)
        return torch.cat([apply_rotary_emb_qwen(part, factors, use_real=False) for part, factors in streams], 1)
    if _plain(rotary[0]).shape[-2] == image.shape[1] and text.shape[1]:
        return torch.cat([text, apply_rotary_emb(image, rotary, sequence_dim=1)], 1)
    return apply_rotary_emb(torch.cat([text, image], 1), rotary, sequence_dim=1)


def _plain(table: Table) -> Tensor:
    return table.table if isinstance(table, PerSampleTable) else table
