"""Qwen-Image's attention processor through which a call may bring some of its tokens alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0, apply_rotary_emb_qwen
from torch import Tensor

from ralu_cache.adapters.sparse import SparseProcessor, heads


class QwenSparseProcessor(SparseProcessor):
    """Text before image in one sequence, each with rotary factors of its own; a mask says which text is padding."""

    accepted = QwenDoubleStreamAttnProcessor2_0

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        rows = self.current()
        if rows is None or attention_mask is not None:  # which the stock processor refuses
            return self.stock(
                attn, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, attention_mask, image_rotary_emb
            )
        size, mask = attn.inner_dim // attn.heads, encoder_hidden_states_mask
        image = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        text = tuple(project(encoder_hidden_states) for project in projections)
        streams = zip(
            _turned(heads(text, size, attn.norm_added_q, attn.norm_added_k), image_rotary_emb[1]),
            _turned(heads(image, size, attn.norm_q, attn.norm_k), image_rotary_emb[0]),
            strict=True,
        )
        query, key, value = (torch.cat(pair, 1) for pair in streams)

        def stock(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return dispatch_attention_fn(
                query, key, value, attn_mask=None if mask is None else _joint_mask(mask, key.shape[1]),
                backend=self.stock._attention_backend, parallel_config=self.stock._parallel_config,
            )  # fmt: skip

        joint = rows.attend(self.layer, query, key, value, rows.text, stock, masked=mask is not None)
        text_out, image_out = joint.flatten(2).to(query.dtype).split([rows.text, hidden_states.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](image_out.contiguous())), attn.to_add_out(text_out.contiguous())


def _turned(parts: tuple[Tensor, Tensor, Tensor], factors: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (k, m, H, d), the first two by the rotary factors."""
    query, key, value = parts
    query, key = (apply_rotary_emb_qwen(part, factors, use_real=False) for part in (query, key))
    return query, key, value


def _joint_mask(text: Tensor, keys: int) -> Tensor:
    """(k, 1, 1, keys) bool: whether each key counts, from the mask (k, m) bool of the text, which comes first."""
    return torch.nn.functional.pad(text, (0, keys - text.shape[1]), value=True)[:, None, None]
