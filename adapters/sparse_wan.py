"""Wan's self-attention with some of the tokens of a call alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, _get_qkv_projections
from torch import Tensor

from ralu_cache.adapters.sparse import SparseProcessor


class WanSparseProcessor(SparseProcessor):
    """Image tokens alone, rotary positions of frame, row and column; what asks the text needs no memory."""

    accepted = (WanAttnProcessor,)
    names = ("attn1",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        fresh = self.current()
        if fresh is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        projected = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = (
            part.unflatten(2, (attn.heads, -1))
            for part in (attn.norm_q(projected[0]), attn.norm_k(projected[1]), projected[2])
        )
        query, key = (_rotated(part, *rotary_emb) for part in (query, key))
        joint = fresh.attend(self.layer, query, key, value, 0, self.dispatched(attention_mask))
        joint = joint.flatten(2).type_as(query)
        return attn.to_out[1](attn.to_out[0](joint))


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbouring channels of (k, m, H, d) turned by tables (k or 1, m, 1, d) that hold every angle twice."""
    cos, sin = cos[..., ::2], sin[..., ::2]
    even, odd = heads[..., ::2], heads[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(heads)
