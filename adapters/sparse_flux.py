"""The attention processor of FLUX.1 and its kin, for calls of some tokens alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections
from diffusers.models.transformers.transformer_longcat_image import LongCatImageAttnProcessor
from torch import Tensor

from ralu_cache.adapters.heads import qkv_in_heads
from ralu_cache.adapters.sparse import SparseProcessor


class FluxSparseProcessor(SparseProcessor):
    """Text before image in one sequence, rotary positions; a single block is given both, joined already."""

    accepted = (FluxAttnProcessor, LongCatImageAttnProcessor)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        fresh = self.current()
        if fresh is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        projected = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = qkv_in_heads(attn, projected[:3])
        if encoder_hidden_states is not None:
            text = qkv_in_heads(attn, projected[3:], "norm_added_")
            query, key, value = (torch.cat(pair, 1) for pair in zip(text, (query, key, value), strict=True))
        query, key = (apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in (query, key))
        if attention_mask is not None and fresh.tokens is not None:  # of all pairs: those whose first is here
            places = fresh.joint(attention_mask.shape[-1], fresh.text, query.shape[1])
            attention_mask = attention_mask.take_along_dim(places[:, None, :, None], 2)
        stock, masked = self.dispatched(attention_mask), attention_mask is not None
        joint = fresh.attend(self.layer, query, key, value, fresh.text, stock, masked)
        joint = joint.flatten(2).to(query.dtype)
        return joint if encoder_hidden_states is None else self.text_first(attn, joint, fresh.text)
