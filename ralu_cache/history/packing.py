"""Packed attention: the rows of samples that bring unequal numbers of them, all in one sequence without any filling.

Pure tensors; the kernel is that of xformers, where it is installed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """Which rows of a call stand in the one sequence of all samples; known on the host, so that no layer waits for it.

    meant: (k, q) bool. lengths: how many of each sample.
    """

    meant: Tensor
    lengths: tuple[int, ...]
    _masks: dict[int, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def index(self) -> Tensor:
        """(sum of lengths,) int64: the rows that are meant, in order, counted over all samples."""
        order = self.meant.flatten().to(torch.uint8).argsort(descending=True, stable=True)
        return order[: sum(self.lengths)]

    def mask(self, keys: int) -> Any:
        """What keeps each sample to its own `keys` in xformers' attention."""
        if keys not in self._masks:
            from xformers.ops.fmha.attn_bias import BlockDiagonalMask

            self._masks[keys] = BlockDiagonalMask.from_seqlens(list(self.lengths), [keys] * len(self.lengths))
        return self._masks[keys]


def packs(device: torch.device, counts: tuple[int, ...]) -> bool:
    """True where samples with unequal numbers of rows are packed: on CUDA, with xformers installed."""
    return len(set(counts)) > 1 and device.type == "cuda" and importlib.util.find_spec("xformers") is not None


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """Exact attention of the rows that are meant, all samples in one sequence without the filling ones.

    query (k, q, H, d), key and value (k, L, H, d) -> (k, q, H, d), zero in rows that are not meant. Raises ImportError
    without xformers, and what xformers raises where it has no kernel, as on a CPU.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError("packed attention needs xformers: pip install 'ralu-cache[xformers]'") from error
    rows = query.flatten(0, 1)
    found = memory_efficient_attention(
        rows[packing.index][None], key.flatten(0, 1)[None], value.flatten(0, 1)[None],
        attn_bias=packing.mask(key.shape[1]),
    )  # fmt: skip
    return torch.zeros_like(rows).index_copy(0, packing.index, found[0]).view_as(query)
