"""FLUX.2's attention processors through which a call may bring some of its tokens alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux2 import (
    Flux2AttnProcessor,
    Flux2ParallelSelfAttnProcessor,
    _get_qkv_projections,
)
from torch import Tensor

from ralu_cache.adapters.heads import qkv_in_heads
from ralu_cache.adapters.sparse import SparseProcessor


class Flux2SparseProcessor(SparseProcessor):
    """Text before image in one sequence; a single block projects both, and the MLP, by one layer."""

    accepted = (Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor)

    def __call__(self, attn: Any, hidden_states: Tensor, *given: Any) -> Any:
        """given: the text where it has a stream of its own, a mask, rotary tables; as the attention hands them on."""
        fresh = self.current()
        if fresh is None:
            return self.stock(attn, hidden_states, *given)
        *text, mask, rotary = given
        mlp: list[Tensor] = []
        if text:
            projected = _get_qkv_projections(attn, hidden_states, *text)
            streams = qkv_in_heads(attn, projected[3:], "norm_added_"), qkv_in_heads(attn, projected[:3])
            query, key, value = (torch.cat(pair, 1) for pair in zip(*streams, strict=True))
        else:
            ends = [attn.inner_dim * number for number in (1, 2, 3)]
            *parts, hidden = attn.to_qkv_mlp_proj(hidden_states).tensor_split(ends, -1)
            query, key, value = qkv_in_heads(attn, parts)
            mlp = [attn.mlp_act_fn(hidden)]
        query, key = (apply_rotary_emb(part, rotary, sequence_dim=1) for part in (query, key))
        joint = fresh.attend(self.layer, query, key, value, fresh.text, self.dispatched(mask))
        joint = joint.flatten(2).to(query.dtype)
        return self.text_first(attn, joint, fresh.text) if text else attn.to_out(torch.cat([joint, *mlp], -1))
