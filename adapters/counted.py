"""The cost of a model, read off its modules: how many operations a row takes in its linear layers."""

from __future__ import annotations

from math import prod
from typing import Any

from ralu_cache.report.flops import BlockCost, Part, StackCost

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


def joint_attention(attention: Any) -> Part:
    """Of image and text tokens together; where text is only read, nothing leads out of it."""
    image = row_flops(attention.to_q, attention.to_k, attention.to_v, attention.to_out)
    text = row_flops(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out)
    return Part(image=image, text=text, joint=attention.inner_dim)


def flux_cost(transformer: Any, sample: int) -> StackCost:
    """Of a model made as FLUX.1; sample: of the layers outside of the blocks that each sample passes once."""
    image, text = row_flops(transformer.x_embedder, transformer.proj_out), row_flops(transformer.context_embedder)
    return StackCost(Part(image=image, text=text, sample=sample), flux_blocks(transformer))


def flux_blocks(transformer: Any) -> tuple[BlockCost, ...]:
    """Of double blocks, then of single ones, made as FLUX.1's, FLUX.2's or SD3's.

    They are modulated by layers of their own or from outside; `attn2`, where there is one, attends once more among
    image tokens (SD3.5 medium).
    """
    blocks = []
    for block in transformer.transformer_blocks:
        attention = joint_attention(block.attn)
        if (own := getattr(block, "attn2", None)) is not None:
            around = row_flops(own.to_q, own.to_k, own.to_v, own.to_out)
            attention += Part(image=around, among_image=own.inner_dim)
        mlp = Part(image=row_flops(block.ff), text=row_flops(block.ff_context))
        blocks.append(BlockCost(attention, mlp, Part(sample=row_flops(block.norm1, block.norm1_context))))
    for block in getattr(transformer, "single_transformer_blocks", ()):
        whole = hasattr(block.attn, "to_qkv_mlp_proj")  # attention and MLP in one piece
        outer = row_flops(block.attn) if whole else row_flops(block.attn.to_q, block.attn.to_k, block.attn.to_v)
        inner = 0 if whole else row_flops(block.proj_mlp, block.proj_out)
        attention, mlp = Part(image=outer, text=outer, joint=block.attn.inner_dim), Part(image=inner, text=inner)
        blocks.append(BlockCost(attention, mlp, Part(sample=row_flops(block.norm))))
    return tuple(blocks)
