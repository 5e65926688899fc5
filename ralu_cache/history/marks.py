"""Marks: what is kept of a token is worth, and what becomes of that over a change of layout; for every quantity."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from ralu_cache.plane.token_map import Kind, TokenMap, take


class Mark(IntEnum):
    """How far what is kept of a token may be used."""

    EMPTY = 0  # never
    INHERITED = 1  # only by who asks for it: it came from a parent or from children, or the token's noise changed
    VALID = 2  # computed for this very token


def moved_marks(mark: Tensor, coarse: int, tokens: TokenMap, changed: Tensor | None = None) -> Tensor:
    """(B, n_old) uint8 `Mark`s -> (B, n_new) of a layout with so many `coarse` tokens.

    KEPT tokens keep theirs, SPLIT and MERGED ones are INHERITED at best, as are those that are `changed` (B, n_new):
    into which fresh noise was mixed. A MERGED token is worth what its least child is.
    """
    moved = take(mark, tokens.source)
    if tokens.merges:
        children = tokens.children
        moved[:, :coarse] = mark.gather(1, children.flatten(1)).view_as(children).amin(2)
    weaker = tokens.kind != Kind.KEPT
    if changed is not None:
        if changed.dtype != torch.bool or changed.shape != moved.shape:
            raise ValueError(f"changed must be {tuple(moved.shape)} bool, got {tuple(changed.shape)} {changed.dtype}")
        weaker = weaker | changed
    return torch.where(weaker, moved.clamp(max=Mark.INHERITED), moved)
