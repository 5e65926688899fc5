"""LTX-Video's self-attention with some of the tokens of a call alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor, apply_rotary_emb
from torch import Tensor

from ralu_cache.adapters.sparse import SparseProcessor
from ralu_cache.plane.token_map import take


class LTXSparseProcessor(SparseProcessor):
    """Video tokens alone, normed over all heads as one; rotary tables (B, n, d) are given for all of them."""

    accepted = (LTXVideoAttnProcessor,)
    names = ("attn1",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        fresh = self.current()
        if fresh is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        rotary = image_rotary_emb
        if fresh.tokens is not None:
            rotary = tuple(take(table, fresh.tokens) for table in rotary)
        query = apply_rotary_emb(attn.norm_q(attn.to_q(hidden_states)), rotary)
        key = apply_rotary_emb(attn.norm_k(attn.to_k(hidden_states)), rotary)
        query, key, value = (
            part.unflatten(2, (attn.heads, -1)) for part in (query, key, attn.to_v(hidden_states))
        )
        joint = fresh.attend(self.layer, query, key, value, 0, self.dispatched(attention_mask))
        return attn.to_out[1](attn.to_out[0](joint.flatten(2).to(query.dtype)))
