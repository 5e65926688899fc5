"""The cost of a model, read off its modules: how many operations a row takes in its linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ralu_cache.adapters.base import BlocksAdapter
from ralu_cache.report.row_flops import BlockCost, Part, StackCost

_FUSED = ("to_qkv", "to_kv", "to_added_qkv", "to_added_kv")  # copies of layers that are there one by one


def row_flops(*modules: Any) -> int:
    """Operations of one row through all linear layers of the modules (of a convolution: of one patch).

    Neither what LoRA adds to a layer nor fused copies of layers are counted; None is a module that isn't there.
    """
    return sum(_of_row(module) for module in modules if module is not None)


def _of_row(module: Any) -> int:
    if hasattr(module, "in_features"):
        return 2 * module.in_features * module.out_features
    if hasattr(module, "kernel_size"):
        return 2 * module.in_channels * module.out_channels * prod(module.kernel_size)
    return sum(_of_row(child) for name, child in module.named_children() if name not in _FUSED)


class CountedAdapter(BlocksAdapter):
    """A family that says what its layers cost by `costs`, and writes `size`."""

    def costs(self, call: Mapping[str, Any]) -> StackCost:
        """What each sample of a call costs."""
        raise NotImplementedError

    def rows(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """Samples, and the image and text tokens of each that cost something."""
        return self.size(call)

    def ragged(self, call: Mapping[str, Any]) -> int:
        """What a call costs besides, outside of the blocks, where its samples differ."""
        return 0

    def flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.rows(call)
        return batch * self.costs(call).forward(image, text) + self.ragged(call)

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.rows(call)
        return batch * self.costs(call).skipped(image, text) + self.ragged(call)

    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        batch, image, text = self.rows(call)
        return batch * self.costs(call).forward(image, text, fresh) + self.ragged(call)

    def replay_flops(self, call: Mapping[str, Any], image: Sequence[int] = (), text: Sequence[int] = ()) -> float:
        batch, tokens, words = self.rows(call)
        return batch * self.costs(call).replay(tokens, words, image, text) + self.ragged(call)


def flux_blocks(transformer: Any) -> tuple[BlockCost, ...]:
    """Of double blocks, then of single ones, made as FLUX.1's or FLUX.2's, modulated by themselves or from outside."""
    blocks = []
    for block in transformer.transformer_blocks:
        attn = block.attn
        image = row_flops(attn.to_q, attn.to_k, attn.to_v, attn.to_out)
        text = row_flops(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.to_add_out)
        attention = Part(image=image, text=text, joint=block.attn.inner_dim)
        mlp = Part(image=row_flops(block.ff), text=row_flops(block.ff_context))
        blocks.append(BlockCost(attention, mlp, Part(sample=row_flops(block.norm1, block.norm1_context))))
    for block in getattr(transformer, "single_transformer_blocks", ()):
        whole = hasattr(block.attn, "to_qkv_mlp_proj")  # attention and MLP in one piece
        outer = row_flops(block.attn) if whole else row_flops(block.attn.to_q, block.attn.to_k, block.attn.to_v)
        inner = 0 if whole else row_flops(block.proj_mlp, block.proj_out)
        attention, mlp = Part(image=outer, text=outer, joint=block.attn.inner_dim), Part(image=inner, text=inner)
        blocks.append(BlockCost(attention, mlp, Part(sample=row_flops(block.norm))))
    return tuple(blocks)
