"""LongCat-Image: FLUX.1 without pooled text or guidance embedding; positions begin behind those of the longest text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import LongCatImageTransformer2DModel
from torch import Tensor, nn

from ralu_cache.adapters.counted import flux_cost, row_flops
from ralu_cache.adapters.flux import FluxAdapter
from ralu_cache.adapters.packed import TokenwiseAdapter


class LongCatAdapter(TokenwiseAdapter, FluxAdapter):
    """`LongCatImageTransformer2DModel` under text-to-image and edit pipelines, which append reference tokens."""

    family = "longcat-image"
    ranked = False
    pipelines = ("LongCatImagePipeline", "LongCatImageEditPipeline")
    control = ()
    batched = ("hidden_states", "encoder_hidden_states", "timestep")

    def __init__(self, transformer: Any) -> None:
        self.channels = transformer.out_channels
        self.cost = flux_cost(transformer, row_flops(transformer.time_embed, transformer.norm_out))

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, LongCatImageTransformer2DModel)

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.x_embedder(call["hidden_states"])
        embedding = transformer.time_embed(call["timestep"].to(hidden.dtype) * 1000, hidden.dtype)
        return transformer.transformer_blocks[0].norm1(hidden, emb=embedding)[0]
