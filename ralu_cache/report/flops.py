"""Analytic cost of a multimodal diffusion transformer (FLUX, SD3): floating point operations of one forward pass.

Counted as `torch.utils.flop_counter` counts, two per multiply-add: every matrix multiplication, that is all linear
layers (modulation and embeddings included) and the two products of exact attention, 4 L^2 d for L tokens of width d.
Left out are normalisation, activations, softmax, rotary embedding and whatever else is not a product of matrices.
Layers that an extra brings along (IP-Adapter, LoRA kept apart) are not part of the model's shape and not counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

TIME_CHANNELS = 256  # sinusoids of the time step; the same in every supported family


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of the linear layers.

    Args:
        width: d, channels of a token inside the blocks.
        double_blocks: blocks with weights of their own for image and text tokens.
        single_blocks: blocks with one set of weights for all tokens, attention and MLP side by side.
        in_channels, out_channels: channels of an image token at the model's doors (patch area included).
        context_channels: channels of a text token as the text encoder gives it.
        mlp_ratio: hidden width of the MLPs over `width`.
        pooled_channels: channels of the pooled text embedding; 0 if the model takes none.
        guidance: whether the guidance scale is embedded like the time step.
        drops_text: whether the last double block reads the text tokens without updating them (SD3).
        dual_attention_blocks: how many of the first double blocks attend once more among image tokens (SD3.5 medium).
        clean_references: whether a second time step, 0, modulates the reference tokens (Qwen-Image-Edit).

    Raises ValueError for a size that is not a non-negative integer, or is 0 where that makes no model.
    """

    width: int
    double_blocks: int
    single_blocks: int
    in_channels: int
    out_channels: int
    context_channels: int
    mlp_ratio: float = 4.0
    pooled_channels: int = 0
    guidance: bool = False
    drops_text: bool = False
    dual_attention_blocks: int = 0
    clean_references: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 0):
                raise ValueError(f"{field.name} must be an integer >= 0, got {value!r}")
        for name in ("width", "in_channels", "out_channels", "context_channels", "mlp_ratio"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be > 0, got {value!r}")
        if self.dual_attention_blocks > self.double_blocks:
            raise ValueError(
                f"dual_attention_blocks = {self.dual_attention_blocks} exceeds double_blocks = {self.double_blocks}"
            )

    @property
    def blocks(self) -> int:
        return self.double_blocks + self.single_blocks


def forward_flops(shape: TransformerShape, image_tokens: int, text_tokens: int, skipped: Collection[int] = ()) -> int:
    """Operations of one forward pass of one sample.

    Args:
        image_tokens, text_tokens: number of tokens of either kind.
        skipped: indices of blocks that the call leaves out; those that the model does not have are ignored.

    Raises:
        ValueError: for a negative number of tokens.
    """
    blocks = sum(block_flops(shape, index, image_tokens, text_tokens) for index in _run(shape, skipped))
    return blocks + embedding_flops(shape, image_tokens, text_tokens)


def sparse_flops(
    shape: TransformerShape, image_tokens: int, text_tokens: int, fresh: int, skipped: Collection[int] = ()
) -> int:
    """Operations of a pass in which only `fresh` image tokens, and all text, run through the blocks (one sample).

    They ask all tokens, whose keys and values are remembered; a second attention asks the image tokens.

    Raises ValueError for a number of fresh tokens that is not within 0 to `image_tokens`.
    """
    if not 0 <= fresh <= image_tokens:
        raise ValueError(f"fresh tokens must lie within 0 to {image_tokens}, got {fresh}")
    d, absent, total = shape.width, image_tokens - fresh, embedding_flops(shape, image_tokens, text_tokens)
    for index in _run(shape, skipped):
        total += block_flops(shape, index, fresh, text_tokens) + attention_flops(fresh + text_tokens, absent, d)
        if index < shape.dual_attention_blocks:
            total += attention_flops(fresh, absent, d)
    return total


def replay_flops(
    shape: TransformerShape,
    image_tokens: int,
    text_tokens: int,
    image: Sequence[int] = (),
    text: Sequence[int] = (),
    skipped: Collection[int] = (),
) -> int:
    """Operations of a pass in which no attention runs, and the MLPs only for some tokens (one sample).

    image, text: how many tokens of either kind each block takes; none by default. Raises ValueError for other numbers
    of blocks than the model's.
    """
    total = embedding_flops(shape, image_tokens, text_tokens)
    d, hidden = shape.width, int(shape.width * shape.mlp_ratio)
    counts = [tuple(given) or (0,) * shape.blocks for given in (image, text)]
    if {len(given) for given in counts} != {shape.blocks}:
        raise ValueError(f"counts of {shape.blocks} blocks are needed, got {[len(given) for given in counts]}")
    for index in _run(shape, skipped):
        fresh, words = counts[0][index], counts[1][index]
        if index >= shape.double_blocks:
            total += _linear(1, d, 3 * d) + _linear(fresh + words, d, hidden) + _linear(fresh + words, d + hidden, d)
            continue
        text_ends = shape.drops_text and index == shape.double_blocks - 1
        rows = fresh if text_ends else fresh + words
        total += _modulation(shape, index) + _linear(rows, d, hidden) + _linear(rows, hidden, d)
    return total


def block_flops(shape: TransformerShape, index: int, image_tokens: int, text_tokens: int) -> int:
    """Operations of block `index` for one sample, counting double blocks first, then single ones.

    Raises:
        ValueError: for a negative number of tokens, or an index that the model does not have.
    """
    _check_tokens(image_tokens, text_tokens)
    if not 0 <= index < shape.blocks:
        raise ValueError(f"block index must lie within 0 to {shape.blocks - 1}, got {index}")
    if index < shape.double_blocks:
        return _double_block(shape, index, image_tokens, text_tokens)
    d, hidden, tokens = shape.width, int(shape.width * shape.mlp_ratio), image_tokens + text_tokens
    modulation = _linear(1, d, 3 * d)
    inward = _linear(tokens, d, 3 * d + hidden)
    return modulation + inward + attention_flops(tokens, tokens, d) + _linear(tokens, d + hidden, d)


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Both matrix products of exact attention, all heads together: 4 queries keys width."""
    return 4 * queries * keys * width


def embedding_flops(shape: TransformerShape, image_tokens: int, text_tokens: int) -> int:
    """Operations outside the blocks for one sample: tokens in and out, time, guidance and pooled text, last modulation.

    Raises:
        ValueError: for a negative number of tokens.
    """
    _check_tokens(image_tokens, text_tokens)
    d = shape.width
    tokens_in = _linear(image_tokens, shape.in_channels, d) + _linear(text_tokens, shape.context_channels, d)
    tokens_out = _linear(1, d, 2 * d) + _linear(image_tokens, d, shape.out_channels)
    levels = 1 + shape.guidance + shape.clean_references
    inputs = [TIME_CHANNELS] * levels + [shape.pooled_channels] * (shape.pooled_channels > 0)
    conditions = sum(_linear(1, channels, d) + _linear(1, d, d) for channels in inputs)
    return tokens_in + tokens_out + conditions


def _double_block(shape: TransformerShape, index: int, image_tokens: int, text_tokens: int) -> int:
    d, hidden, tokens = shape.width, int(shape.width * shape.mlp_ratio), image_tokens + text_tokens
    dual = index < shape.dual_attention_blocks
    text_ends = shape.drops_text and index == shape.double_blocks - 1
    updated = image_tokens if text_ends else tokens
    attention = _linear(tokens, d, 3 * d) + attention_flops(tokens, tokens, d) + _linear(updated, d, d)
    mlp = _linear(updated, d, hidden) + _linear(updated, hidden, d)
    second = _linear(image_tokens, d, 4 * d) + attention_flops(image_tokens, image_tokens, d) if dual else 0
    return _modulation(shape, index) + attention + mlp + second


def _modulation(shape: TransformerShape, index: int) -> int:
    """Of a double block: six vectors of width d for image and text each, and those of a second attention or time."""
    vectors = 12 + 3 * (index < shape.dual_attention_blocks) + 6 * shape.clean_references
    text_ends = shape.drops_text and index == shape.double_blocks - 1
    return _linear(1, shape.width, (vectors - 4 * text_ends) * shape.width)


def _run(shape: TransformerShape, skipped: Collection[int]) -> list[int]:
    """Indices of the blocks that a call runs."""
    return [index for index in range(shape.blocks) if index not in skipped]


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _check_tokens(image_tokens: int, text_tokens: int) -> None:
    if image_tokens < 0 or text_tokens < 0:
        raise ValueError(f"numbers of tokens must be >= 0, got {image_tokens} image and {text_tokens} text tokens")
