"""Rotary tables of which every sample has its own, where stock attention expects one for the whole batch."""

from __future__ import annotations

from torch import Tensor

from ralu_cache.token_map import take


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

    def rows(self, rows: Tensor) -> PerSampleTable:
        return PerSampleTable(self.table[rows])


def pick(table: Tensor | PerSampleTable, places: Tensor) -> PerSampleTable:
    """A table for the tokens at some places (k, q) of each sample's sequence."""
    if isinstance(table, PerSampleTable):
        return PerSampleTable(take(table.table, places))
    return PerSampleTable(table[places])
