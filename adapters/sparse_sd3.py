"""SD3's attention processor through which a call may bring some of its tokens alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import _get_projections
from torch import Tensor

from ralu_cache.adapters.heads import qkv_in_heads
from ralu_cache.adapters.sparse import SparseProcessor


class SD3SparseProcessor(SparseProcessor):
    """Image before text in one sequence; the second attention of SD3.5 medium has image only."""

    accepted = (JointAttnProcessor2_0,)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        fresh = self.current()
        if fresh is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        projected = _get_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = qkv_in_heads(attn, projected[:3])
        if encoder_hidden_states is not None:
            text = qkv_in_heads(attn, projected[3:], "norm_added_")
            query, key, value = (torch.cat(pair, 1) for pair in zip((query, key, value), text, strict=True))
        joint = fresh.attend(self.layer, query, key, value, 0, _exact).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return attn.to_out[1](attn.to_out[0](joint))
        image_out, text_out = joint.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        if not attn.context_pre_only:
            text_out = attn.to_add_out(text_out)
        return attn.to_out[1](attn.to_out[0](image_out)), text_out


def _exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Stock attention on (k, q, H, d)."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=0.0, is_causal=False).transpose(1, 2)
