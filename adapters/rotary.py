"""Rotary tables: those of which every sample has its own, and how each family turns queries and keys by them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor

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

    def select(self, samples: Tensor) -> PerSampleTable:
        return PerSampleTable(self.table[samples])


def own_tables(table: Tensor | PerSampleTable, batch: int) -> Tensor | PerSampleTable:
    """A table that all of a batch share, (S, D), as if each sample had its own; that of a single sample as it is.

    So all calls of a run with stages bring tables of one kind: compiled blocks are compiled again for each kind.
    """
    if isinstance(table, PerSampleTable) or batch == 1:
        return table
    return PerSampleTable(table.repeat(batch, 1, 1))


def pick(table: Tensor | PerSampleTable, places: Tensor) -> PerSampleTable:
    """A table for the tokens at some places (k, q) of each sample's sequence."""
    if isinstance(table, PerSampleTable):
        return PerSampleTable(take(table.table, places))
    return PerSampleTable(table[places])


def turned(text: Tensor, image: Tensor, rotary: Any) -> Tensor:
    """Heads of text and image (B, m or n, H, d), in this order, turned by what their attention is given.

    rotary: None for nothing, (cos, sin) of the whole sequence as in FLUX, or complex factors (image, text) as in
    Qwen-Image.
    """
    if rotary is None:
        return torch.cat([text, image], 1)
    if _is_complex(rotary[0]):
        streams = zip((text, image), (rotary[1], rotary[0]), strict=True)
        return torch.cat([apply_rotary_emb_qwen(part, factors, use_real=False) for part, factors in streams], 1)
    return apply_rotary_emb(torch.cat([text, image], 1), rotary, sequence_dim=1)


def _is_complex(table: Tensor | PerSampleTable) -> bool:
    return (table.table if isinstance(table, PerSampleTable) else table).is_complex()
