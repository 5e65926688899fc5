"""Token maps: which tokens of one layout cover the places of another's.

Pure tensors; positions are raster indices of the fine token grid, 2Y x 2X for Y x X cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from ralu_cache.plane.canvas import TokenLayout, replicate


class Kind(IntEnum):
    """What a token of the new layout was in the old one."""

    KEPT = 0  # the same token
    SPLIT = 1  # a part of a coarse token
    MERGED = 2  # four fine tokens


def describe(layout: TokenLayout) -> str:
    """A layout in an error message: sizes, and the identity that tells it from others of the same sizes."""
    rows, columns = layout.cells
    counts = f"{layout.coarse_tokens} coarse + {4 * layout.count} fine tokens"
    return f"layout {id(layout):#x} ({layout.batch} x {counts} on {rows} x {columns} cells)"


def token_at(layout: TokenLayout) -> Tensor:
    """(B, 4 Y X) int64: the token that covers each position of the fine grid, raster order."""
    batch, coarse = layout.batch, layout.coarse_tokens
    numbers = torch.arange(layout.tokens, device=layout.refined.device).expand(batch, -1)
    cells = numbers.new_zeros(batch, layout.refined[0].numel()).scatter(1, layout.coarse_index, numbers[:, :coarse])
    fine = numbers.new_zeros(batch, layout.fine_tokens[0].numel()).scatter(1, layout.fine_index, numbers[:, coarse:])
    return torch.where(layout.fine_tokens.flatten(1), fine, replicate(cells.view(batch, *layout.cells)).flatten(1))


def corners(layout: TokenLayout) -> Tensor:
    """(B, n) int64: the fine position of each token; of a coarse one the upper left of the four that it covers."""
    columns = layout.cells[1]
    coarse = layout.coarse_index // columns * (4 * columns) + layout.coarse_index % columns * 2
    return torch.cat([coarse, layout.fine_index], 1)


def plane(values: Tensor, layout: TokenLayout) -> Tensor:
    """Token values (B, n, d) on the fine token grid (B, d, 2Y, 2X); coarse tokens are replicated."""
    if values.shape[:2] != (layout.batch, layout.tokens):
        raise ValueError(f"expected ({layout.batch}, {layout.tokens}, d) for {describe(layout)}, got {values.shape}")
    return take(values, token_at(layout)).transpose(1, 2).unflatten(2, layout.fine_grid)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Where each token of a new layout comes from in an old one.

    source: (B, n_new) int64, a token of the old layout; of MERGED tokens the upper left child.
    children: (B, coarse tokens of the new layout, 4) int64: the old tokens that cover each new coarse token's cell,
        raster order; four different ones where MERGED, four times `source` where KEPT.
    kind: (B, n_new) uint8, a `Kind`.
    """

    source: Tensor
    children: Tensor
    kind: Tensor

    @cached_property
    def merges(self) -> bool:
        """True if any token is MERGED; stages that only refine never merge."""
        return bool((self.kind == Kind.MERGED).any())


def map_tokens(old: TokenLayout, new: TokenLayout) -> TokenMap:
    """For each token of `new`, the token or tokens of `old` that cover the same place.

    Raises ValueError unless both have the same batch, cells and patch.
    """
    if (old.batch, old.cells, old.patch) != (new.batch, new.cells, new.patch):
        raise ValueError(
            f"layouts of one plane are needed, got batch {old.batch}, cells {old.cells}, patch {old.patch} and "
            f"batch {new.batch}, cells {new.cells}, patch {new.patch}"
        )
    columns, coarse = old.cells[1], new.coarse_tokens
    covering, refined = token_at(old), old.refined.flatten(1)
    corner = corners(new)[:, :coarse]
    offsets = torch.tensor([0, 1, 2 * columns, 2 * columns + 1], device=corner.device)
    places = (corner[..., None] + offsets).flatten(1)
    children = covering.gather(1, places).view(new.batch, -1, 4)
    source = torch.cat([children[..., 0], covering.gather(1, new.fine_index)], 1)
    merged = refined.gather(1, new.coarse_index).to(torch.uint8) * Kind.MERGED
    split = (~old.fine_tokens.flatten(1).gather(1, new.fine_index)).to(torch.uint8) * Kind.SPLIT
    return TokenMap(source, children, torch.cat([merged, split], 1))


def take(values: Tensor, index: Tensor) -> Tensor:
    """Some tokens of each sample: (B, n, ...) and (B, m) -> (B, m, ...).

    Whole tokens are copied: on a CPU eight times faster than `gather`, which goes from element to element.
    """
    if not values.is_contiguous():
        return values[_samples(values), index]
    places = index if len(values) == 1 else index + values.shape[1] * _samples(values)
    return values.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, index.shape)


def put(values: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """A copy of values (B, n, ...) with `new` (B, m, ...) for the tokens `index` (B, m) of each sample."""
    return put_(values.clone(), index, new)


def put_(values: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """`put` in place; tokens that `index` names twice must be given the same values twice."""
    values[_samples(values), index] = new
    return values


def _samples(values: Tensor) -> Tensor:
    return torch.arange(len(values), device=values.device)[:, None]
