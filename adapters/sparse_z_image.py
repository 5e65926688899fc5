"""Z-Image's attention processor through which a call may bring some of its tokens alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import Tensor

from ralu_cache.adapters.heads import qkv_in_heads
from ralu_cache.adapters.rotary import turned_by
from ralu_cache.adapters.sparse import SparseProcessor
from ralu_cache.plane.token_map import take


class ZImageSparseProcessor(SparseProcessor):
    """Image, its padding and text in one sequence, or the image alone; rotary factors are given for all of it."""

    accepted = (ZSingleStreamAttnProcessor,)
    names = ("attention",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        fresh = self.current()
        if fresh is None or freqs_cis is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, freqs_cis)
        projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = qkv_in_heads(attn, projected)
        if fresh.tokens is not None:
            freqs_cis = take(freqs_cis, fresh.joint(freqs_cis.shape[1], 0, query.shape[1]))
        query, key = turned_by(query, freqs_cis), turned_by(key, freqs_cis)
        mask = None if attention_mask is None else attention_mask[:, None, None]
        joint = fresh.attend(self.layer, query, key, value, 0, self.dispatched(mask), masked=mask is not None)
        return attn.to_out[1](attn.to_out[0](joint.flatten(2).to(query.dtype)))
