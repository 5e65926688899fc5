"""Small random CogView4 pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler

from tests.pipelines import make_vae, pictures, stirred

SIZES = {
    "patch_size": 2,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "text_embed_dim": 32,
    "time_embed_dim": 8,
    "condition_dim": 4,
}


def make_cogview4_pipeline(cls: type = diffusers.CogView4Pipeline, in_channels: int = 4) -> Any:
    torch.manual_seed(0)
    pipe = cls(
        tokenizer=None, text_encoder=None, vae=make_vae(),
        transformer=stirred(CogView4Transformer2DModel(in_channels=in_channels, **SIZES).eval()),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=True, time_shift_type="linear"),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogview4_pictures(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """As `pictures`."""
    return {name: value for name, value in pictures(samples).items() if "pooled" not in name} | overrides
