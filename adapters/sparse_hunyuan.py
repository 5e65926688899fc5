"""HunyuanVideo 1.5's attention processor for calls of some tokens alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import _get_projections
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0
from torch import Tensor

from ralu_cache.adapters.heads import qkv_in_heads
from ralu_cache.adapters.sparse import SparseProcessor


class HunyuanSparseProcessor(SparseProcessor):
    """Video before text in one sequence; the rotary tables are the video's, and a mask says which text is padding."""

    accepted = (HunyuanVideo15AttnProcessor2_0,)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Any = None,
    ) -> Any:
        fresh = self.current()
        if fresh is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        projected = _get_projections(attn, hidden_states, encoder_hidden_states)
        image, text = qkv_in_heads(attn, projected[:3]), qkv_in_heads(attn, projected[3:], "norm_added_")
        turned = (apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in image[:2])
        query, key, value = (torch.cat(pair, 1) for pair in zip((*turned, image[2]), text, strict=True))

        def stock(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            counts = [
                F.pad(attention_mask.bool(), (rows.shape[1] - attention_mask.shape[1], 0), value=True)
                for rows in (query, key)
            ]
            return self.dispatched(counts[0][:, None, :, None] & counts[1][:, None, None])(query, key, value)

        joint = fresh.attend(self.layer, query, key, value, 0, stock, masked=True).flatten(2).to(query.dtype)
        image_out, text_out = joint.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](image_out)), attn.to_add_out(text_out)
