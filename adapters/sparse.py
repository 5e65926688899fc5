"""Attention processors through which a call may bring some of its tokens alone: see `ralu_cache.history.attention`.

While no call of ours is under way they are the stock processors, which do the work. With all tokens they compute what
the stock ones compute, bit for bit, and keep the keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections
from torch import Tensor, nn

from ralu_cache.history.attention import Rows

Current = Callable[[], Rows | None]


class SparseProcessor:
    """Stands in for the `stock` processor of one attention layer, named `layer`."""

    accepted: ClassVar[type]  # of stock processor
    names: ClassVar[tuple[str, ...]] = ("attn", "attn2")  # of the layers in which image tokens attend to each other

    def __init__(self, stock: Any, layer: str, current: Current) -> None:
        if type(stock) is not self.accepted:
            raise ValueError(
                f"attention processor {type(stock).__name__} is not supported with row-sparse recompute, only "
                f"{self.accepted.__name__}; unload IP-adapters and custom processors, or use another temporal policy"
            )
        self.stock: Any = stock
        self.layer, self.current = layer, current
        self.users: set[object] = set()

    def __reduce__(self) -> Any:
        """A copy of the model has the stock processor."""
        return _itself, (self.stock,)

    @classmethod
    def install(cls, blocks: Callable[[], list[nn.Module]], user: object, current: Current) -> Installed:
        """Put one in every attention layer of the blocks. Raises ValueError where another is than the stock one."""

        def layers() -> list[tuple[str, Any]]:
            return [
                (f"{number}.{name}", getattr(block, name))
                for number, block in enumerate(blocks())
                for name in cls.names
                if getattr(block, name, None) is not None
            ]

        return Installed(layers, cls, user, current)

    @property
    def _attention_backend(self) -> Any:
        """As diffusers sets it on processors; kept by the stock one."""
        return self.stock._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.stock._attention_backend = backend


class FluxSparseProcessor(SparseProcessor):
    """FLUX: text before image in one sequence, rotary positions."""

    accepted = FluxAttnProcessor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        rows = self.current()
        if rows is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        projected = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = heads(projected[:3], attn.head_dim, attn.norm_q, attn.norm_k)
        if encoder_hidden_states is not None:
            text = heads(projected[3:], attn.head_dim, attn.norm_added_q, attn.norm_added_k)
            query, key, value = (torch.cat(pair, 1) for pair in zip(text, (query, key, value), strict=True))
        query, key = (apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in (query, key))

        def stock(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return dispatch_attention_fn(
                query, key, value, attn_mask=attention_mask, backend=self.stock._attention_backend,
                parallel_config=self.stock._parallel_config,
            )  # fmt: skip

        joint = rows.attend(self.layer, query, key, value, rows.text, stock).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return joint
        text_out, image_out = joint[:, : rows.text], joint[:, rows.text :]
        return attn.to_out[1](attn.to_out[0](image_out.contiguous())), attn.to_add_out(text_out.contiguous())


class SD3SparseProcessor(SparseProcessor):
    """Stable Diffusion 3: image before text in one sequence; the second attention of SD3.5 medium has image only."""

    accepted = JointAttnProcessor2_0

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        rows = self.current()
        if rows is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        size = attn.to_k.out_features // attn.heads
        image = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = heads(image, size, attn.norm_q, attn.norm_k)
        if encoder_hidden_states is not None:
            projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            projected = tuple(project(encoder_hidden_states) for project in projections)
            text = heads(projected, size, attn.norm_added_q, attn.norm_added_k)
            query, key, value = (torch.cat(pair, 1) for pair in zip((query, key, value), text, strict=True))
        joint = rows.attend(self.layer, query, key, value, 0, _exact).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return attn.to_out[1](attn.to_out[0](joint))
        image_out, text_out = joint.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        if not attn.context_pre_only:
            text_out = attn.to_add_out(text_out)
        return attn.to_out[1](attn.to_out[0](image_out)), text_out


def heads(
    projected: tuple[Tensor, ...], size: int, norm_query: nn.Module | None, norm_key: nn.Module | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (k, m, d) -> (k, m, H, size), the first two normalised where the model does so."""
    query, key, value = (part.unflatten(-1, (-1, size)) for part in projected)
    return (
        query if norm_query is None else norm_query(query),
        key if norm_key is None else norm_key(key),
        value,
    )


def _exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Stock attention on (k, q, H, d)."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=0.0, is_causal=False).transpose(1, 2)


def _itself(stock: Any) -> Any:
    return stock


class Installed:
    """Processors of ours in some attention layers, for one user of them; the last to leave puts the stock ones back."""

    def __init__(
        self,
        layers: Callable[[], list[tuple[str, Any]]],
        processor: type[SparseProcessor],
        user: object,
        current: Current,
    ) -> None:
        self._layers, self._processor, self._user, self._current = layers, processor, user, current
        self._taken: list[Any] = []
        self.refresh()

    def refresh(self) -> None:
        """Put ours where others were set since. Raises ValueError, changing nothing, where they can't stand in."""
        found = self._layers()
        ours = [
            layer.processor
            if isinstance(layer.processor, SparseProcessor)
            else self._processor(layer.processor, name, self._current)
            for name, layer in found
        ]  # may refuse: before any is set
        self._taken = [layer for _, layer in found]
        for layer, mine in zip(self._taken, ours, strict=True):
            mine.users.add(self._user)
            if layer.processor is not mine:
                layer.set_processor(mine)

    def remove(self) -> None:
        for layer in self._taken:
            mine = layer.processor
            if isinstance(mine, SparseProcessor):
                mine.users.discard(self._user)
                if not mine.users:
                    layer.set_processor(mine.stock)
        self._taken = []
