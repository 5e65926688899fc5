"""Chroma: FLUX.1 without pooled text; one small network gives the modulations of all blocks, and padding is masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import ChromaTransformer2DModel
from torch import Tensor, nn

from ralu_cache.adapters.counted import flux_cost, row_flops
from ralu_cache.adapters.flux import FluxAdapter
from ralu_cache.plane.canvas import TokenLayout


class ChromaAdapter(FluxAdapter):
    """`ChromaTransformer2DModel` under text-to-image, img2img and inpainting. Guidance is a second call."""

    family = "chroma"
    pipelines = ("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline")
    ranked = False
    batched = ("hidden_states", "encoder_hidden_states", "timestep", "attention_mask")

    def __init__(self, transformer: Any) -> None:
        self.channels = transformer.out_channels
        modulations = transformer.time_text_embed.mod_proj.shape[0]
        self.cost = flux_cost(transformer, modulations * row_flops(transformer.distilled_guidance_layer))

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, ChromaTransformer2DModel)

    def conditioning(self, call: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """Padding tells prompts apart too; the mask's part for the image, as long as the image, is always set."""
        tensors, settings = super().conditioning(call)
        mask = call.get("attention_mask")
        return tensors if mask is None else {**tensors, "attention_mask": mask}, settings

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        short = super().shorten(call, layout, tokens, positions)
        if (mask := call.get("attention_mask")) is not None:
            absent = call["hidden_states"].shape[1] - short["hidden_states"].shape[1]
            short["attention_mask"] = mask[:, : mask.shape[1] - absent]
        return short

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        hidden = transformer.x_embedder(call["hidden_states"])
        inputs = transformer.time_text_embed(call["timestep"].to(hidden.dtype) * 1000)
        first = 3 * len(transformer.single_transformer_blocks)
        modulations = transformer.distilled_guidance_layer(inputs)[:, first : first + 6]
        return transformer.transformer_blocks[0].norm1(hidden, emb=modulations)[0]
