"""Attention by heads, as diffusers' modules split and normalise what they project, and the text's share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Heads = tuple[Tensor, Tensor, Tensor]
"""Query, key and value, each (B, n, H, d / H)."""


def in_heads(attention: Any, projected: Tensor, norm: str) -> Tensor:
    """(B, n, d) -> (B, n, H, d / H), normalised by the attention's module of that name if it has one."""
    heads = projected.unflatten(-1, (-1, attention.inner_dim // attention.heads))
    module = getattr(attention, norm, None)
    return heads if module is None else module(heads)


def qkv_in_heads(attention: Any, projected: Sequence[Tensor], norm: str = "norm_") -> Heads:
    """Query, key and value (B, n, d) in heads. norm: how the names of their norms begin, "norm_added_" for text."""
    query, key = (in_heads(attention, part, norm + name) for part, name in zip(projected, "qk", strict=False))
    return query, key, in_heads(attention, projected[2], "")


def text_share(query: Tensor, key: Tensor, text_key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of each image token's attention that falls on the text, mean over heads: (B, n, H, d) -> (B, n).

    mask: (B, m) bool, the text tokens that count; None for all.
    """
    keys = torch.cat([text_key, key], 1)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.float(), keys.float()) * query.shape[-1] ** -0.5
    if mask is not None:
        scores[..., : mask.shape[1]].masked_fill_(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1)[..., : text_key.shape[1]].sum(-1).mean(1)


def attention_heads(attention: Any, hidden: Tensor, text: Tensor) -> Heads:
    """Queries and keys of image tokens (B, n, d), keys of text tokens (B, m, d), in heads: what `text_share` takes."""
    return (
        in_heads(attention, attention.to_q(hidden), "norm_q"),
        in_heads(attention, attention.to_k(hidden), "norm_k"),
        in_heads(attention, attention.add_k_proj(text), "norm_added_k"),
    )


def text_mask(inputs: Mapping[str, Any], words: int) -> Tensor | None:
    """(B, m) bool, which of so many text tokens count, from what an attention is given by name; None for all.

    A mask of all pairs (B, 1, q, k), text first, says it in the row of its last image token; one (B, k) is the text's,
    or of a sequence without a text of its own.
    """
    if (mask := inputs.get("attention_mask")) is not None:
        return mask.bool() if mask.ndim == 2 else mask[:, 0, -1, :words]
    return inputs.get("encoder_hidden_states_mask")
