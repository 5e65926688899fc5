"""The submodules of stock blocks whose outputs can be cached layer by layer, and what their attention knows of tokens.

The blocks are row-wise outside of their attention: a *double* block has MLPs of its own for image and text (`ff` and
`ff_context`; `img_mlp` and `txt_mlp` in Qwen-Image), a FLUX *single* block runs one over text and image joined, inside
`proj_mlp` and `proj_out`; a FLUX.2 single block makes attention and MLP in one piece, which is kept as a whole. A Wan
block has no text tokens: its image tokens attend to each other, then to the text (`attn1`, `attn2`, `ffn`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoTransformerBlock
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.heads import in_heads, text_mask
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.rotary import turned
from ralu_cache.adapters.sites import Role, Site
from ralu_cache.history.layer_cache import LayerCache

_ACROSS_HEADS = (WanAttention, LTXAttention)  # these normalise all heads as one


def find_sites(blocks: Sequence[nn.Module]) -> list[tuple[Site, nn.Module]]:
    """The sites of a transformer's blocks and their modules. Raises ValueError for blocks of another make."""
    found = []
    for layer, block in enumerate(blocks):
        if hasattr(block, "proj_mlp"):
            roles = [
                ("attn", Role.INNER_ATTENTION, ("joint",)),
                ("proj_mlp", Role.PROJ_MLP, ()),
                ("proj_out", Role.PROJ_OUT, ("joint",)),
            ]
        elif hasattr(block, "attn") and hasattr(block.attn, "to_qkv_mlp_proj"):
            roles = [("attn", Role.PARALLEL, ("joint",))]
        elif hasattr(block, "ff_context"):
            text = "unused" if block.ff_context is None else "text"  # a last block may give no text
            roles = [
                ("attn", Role.ATTENTION, ("image", text, "image")),
                ("attn2", Role.ATTENTION, ("image",)),
                ("ff", Role.MLP, ("image",)),
                ("ff_context", Role.MLP, ("text",)),
            ]
        elif hasattr(block, "txt_mlp"):
            roles = [
                ("attn", Role.ATTENTION, ("image", "text")),
                ("img_mlp", Role.MLP, ("image",)),
                ("txt_mlp", Role.MLP, ("text",)),
            ]
        elif isinstance(block, ZImageTransformerBlock):
            roles = [("attention", Role.ATTENTION, ("image",)), ("feed_forward", Role.MLP, ("image",))]
        elif isinstance(block, WanTransformerBlock | LTXVideoTransformerBlock):
            roles = [
                ("attn1", Role.ATTENTION, ("image",)),
                ("attn2", Role.CROSS_ATTENTION, ("image",)),
                ("ffn" if isinstance(block, WanTransformerBlock) else "ff", Role.MLP, ("image",)),
            ]
        else:
            raise ValueError(
                f"{type(block).__name__} is not supported with layer caching: expected blocks with ff and ff_context, "
                "with img_mlp and txt_mlp, or with proj_mlp and proj_out, or Wan's; use another temporal policy"
            )
        modules = [(Site(layer, name, role, parts), getattr(block, name, None)) for name, role, parts in roles]
        found += [(site, module) for site, module in modules if module is not None]
    return found


class Projections:
    """Watches an attention's projections, so that measures of its tokens cost no second pass through them.

    `given()` is where a call that is being recorded leaves what they gave, by name, None for any other; `keep` reads
    it. Raises ValueError for another measure.
    """

    def __init__(
        self,
        attention: Any,
        site: Site,
        measures: Sequence[str],
        given: Callable[[], dict[Site, dict[str, Tensor]] | None],
    ) -> None:
        self.attention, self.site, self.measures, self.given = attention, site, measures, given
        if "attention" in measures and isinstance(attention, _ACROSS_HEADS):
            name = type(attention).__name__
            raise ValueError(f"score 'attention' is not supported for {name}; choose 'value', 'key' or another score")
        needed: dict[str, tuple[str, ...]] = {
            "key": ("to_k",),
            "value": ("to_v",),
            "attention": ("to_q", "to_k", "add_q_proj", "add_k_proj"),
        }
        for name in measures:
            if name not in needed:
                raise ValueError(f"a layer's token measure must be one of {', '.join(needed)}, got {name!r}")
        self._handles: list[RemovableHandle] = [
            getattr(attention, name).register_forward_hook(Hook(partial(self._keep, name)))
            for name in sorted({name for measure in measures for name in needed[measure]})
            if getattr(attention, name, None) is not None
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def keep(self, cache: LayerCache, samples: Tensor | None, text: int, inputs: Mapping[str, Any]) -> None:
        """Put the measures of the call that just ran into the cache, and forget what the projections gave.

        inputs: the attention's, by name, for its rotary tables and the mask of its text.

        "key" and "value": norm over all heads, of keys as the model normalises them. "attention": the sum of each
        column of the attention map, mean over heads; text tokens ask too. Its cost is that of attention without a
        fused kernel: 2 L^2 d FLOPs a layer and 256 H L numbers a sample at a time, H heads, L tokens.

        Raises ValueError where the projections are fused: their outputs are not to be had one by one.
        """
        recorded = self.given()
        given = {} if recorded is None else recorded.pop(self.site, {})
        missing = "to_v" if "value" in self.measures else "to_k"
        if missing not in given:
            raise ValueError(
                f"score by {', '.join(self.measures)} with fused projections is not supported: call "
                "transformer.unfuse_qkv_projections(), or choose another score"
            )
        offset = text if self.site.role is Role.INNER_ATTENTION else 0
        image = slice(offset, offset + cache.layout.tokens)
        for measure in self.measures:
            if measure == "attention":
                place = offset if "add_k_proj" not in given else text
                values = self._received(given, inputs, text)[:, place : place + cache.layout.tokens]
            elif measure == "key":
                values = self._heads(given["to_k"], "norm_k")[:, image].float().flatten(2).norm(dim=-1)
            else:
                values = given["to_v"][:, image].float().norm(dim=-1)
            cache.keep_measure(measure, self.site.key(), values, samples)

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if (given := self.given()) is not None:
            given.setdefault(self.site, {})[name] = output

    def _heads(self, projected: Tensor, norm: str) -> Tensor:
        if isinstance(self.attention, _ACROSS_HEADS):
            return getattr(self.attention, norm)(projected).unflatten(-1, (self.attention.heads, -1))
        return in_heads(self.attention, projected, norm)

    def _received(self, given: Mapping[str, Tensor], inputs: Mapping[str, Any], text: int) -> Tensor:
        rotary, mask = inputs.get("image_rotary_emb", inputs.get("freqs_cis")), text_mask(inputs, text)
        query, key = self._heads(given["to_q"], "norm_q"), self._heads(given["to_k"], "norm_k")
        if "add_k_proj" not in given:
            return received(turned(query[:, :0], query, rotary), turned(key[:, :0], key, rotary), mask=mask)
        words = self._heads(given["add_q_proj"], "norm_added_q"), self._heads(given["add_k_proj"], "norm_added_k")
        query, key = (turned(*pair, rotary) for pair in zip(words, (query, key), strict=True))
        return received(query, key, mask=mask)


def received(query: Tensor, key: Tensor, chunk: int = 256, mask: Tensor | None = None) -> Tensor:
    """Attention that each token receives from all others, mean over heads: (B, q, H, d), (B, L, H, d) -> (B, L).

    The columns of the attention map, summed; `chunk` rows of it are held at a time. Together they make q. mask:
    (B, m) bool, which of the text tokens, the first m, count; None for all. Padding neither asks nor answers.
    """
    total = key.new_zeros(key.shape[:2], dtype=torch.float32)
    asks = query.new_ones(query.shape[:2], dtype=torch.bool)
    if mask is not None:
        asks[:, : mask.shape[1]] = mask
    for part, counts in zip(query.split(chunk, 1), asks.split(chunk, 1), strict=True):
        scores = torch.einsum("bqhd,bkhd->bhqk", part.float(), key.float()) * query.shape[-1] ** -0.5
        if mask is not None:
            scores[..., : mask.shape[1]].masked_fill_(~mask[:, None, None], -torch.inf)
        total += (scores.softmax(-1) * counts[:, None, :, None]).sum(2).mean(1)
    return total
