"""Analytic cost of a diffusion transformer whose image tokens attend to themselves and then to the text (Wan).

Counted as in `ralu_cache.report.flops`, all of one sample: the text has no blocks of its own, but each block projects
it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ralu_cache.report.flops import _linear, attention_flops


@dataclass(frozen=True)
class CrossShape:
    """Sizes of the linear layers.

    width: d, channels of a token inside the blocks. blocks: their number. mlp_width: hidden width of their MLPs.
    in_channels, out_channels: channels of an image token at the model's doors (patch area included).
    context_channels: channels of a text token. time_channels: sinusoids of the time step.
    picture_channels: channels of a token of the conditioning picture; 0 if the model takes none.
    """

    width: int
    blocks: int
    mlp_width: int
    in_channels: int
    out_channels: int
    context_channels: int
    time_channels: int
    picture_channels: int = 0


@dataclass(frozen=True)
class CrossInputs:
    """What one sample brings along.

    image: tokens of the image or video. text: text tokens. picture: tokens of a conditioning picture. timesteps: 1, or
    one for each image token.
    """

    image: int
    text: int
    picture: int = 0
    timesteps: int = 1


@lru_cache(maxsize=256)
def embedding_flops(shape: CrossShape, inputs: CrossInputs) -> int:
    """Operations outside the blocks: tokens in and out, time, text and picture."""
    d, picture = shape.width, shape.picture_channels
    tokens = _linear(inputs.image, shape.in_channels, d) + _linear(inputs.image, d, shape.out_channels)
    time = _linear(inputs.timesteps, shape.time_channels, d) + _linear(inputs.timesteps, d, 7 * d)
    text = _linear(inputs.text, shape.context_channels, d) + _linear(inputs.text, d, d)
    return tokens + time + text + _linear(inputs.picture, picture, picture + d)


@lru_cache(maxsize=256)
def block_flops(shape: CrossShape, inputs: CrossInputs, fresh: int | None = None) -> int:
    """Operations of one block; with `fresh`, so many image tokens ask all of them, whose keys and values are known."""
    d, rows = shape.width, inputs.image if fresh is None else fresh
    context = inputs.text + inputs.picture
    attention = _linear(rows, d, 4 * d) + attention_flops(rows, inputs.image, d)
    cross = _linear(rows, d, 2 * d) + _linear(context, d, 2 * d) + attention_flops(rows, context, d)
    return attention + cross + mlp_flops(shape, rows)


@lru_cache(maxsize=256)
def mlp_flops(shape: CrossShape, rows: int) -> int:
    """Operations of MLPs for so many image tokens, summed over the blocks that are meant."""
    return 2 * _linear(rows, shape.width, shape.mlp_width)
