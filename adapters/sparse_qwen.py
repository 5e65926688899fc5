"""Qwen-Image's attention processor through which a call may bring some of its tokens alone: see `sparse.py`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import _get_projections
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from torch import Tensor

from ralu_cache.adapters.heads import qkv_in_heads
from ralu_cache.adapters.rotary import turned
from ralu_cache.adapters.sparse import SparseProcessor


class QwenSparseProcessor(SparseProcessor):
    """Text before image in one sequence, each with rotary factors of its own; a mask says which text is padding."""

    accepted = (QwenDoubleStreamAttnProcessor2_0,)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        fresh = self.current()
        if fresh is None or attention_mask is not None:  # which the stock processor refuses
            return self.stock(
                attn, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, attention_mask, image_rotary_emb
            )
        projected = _get_projections(attn, hidden_states, encoder_hidden_states)
        image, text = qkv_in_heads(attn, projected[:3]), qkv_in_heads(attn, projected[3:], "norm_added_")
        query, key = (turned(*pair, image_rotary_emb) for pair in zip(text[:2], image[:2], strict=True))
        value, mask = torch.cat([text[2], image[2]], 1), encoder_hidden_states_mask

        def stock(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.dispatched(None if mask is None else _joint_mask(mask, key.shape[1]))(query, key, value)

        joint = fresh.attend(self.layer, query, key, value, fresh.text, stock, masked=mask is not None)
        return self.text_first(attn, joint.flatten(2).to(query.dtype), fresh.text)


def _joint_mask(text: Tensor, keys: int) -> Tensor:
    """(k, 1, 1, keys) bool: whether each key counts, from the mask (k, m) bool of the text, which comes first."""
    return torch.nn.functional.pad(text, (0, keys - text.shape[1]), value=True)[:, None, None]
