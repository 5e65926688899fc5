"""Small random Qwen-Image 2.1 pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel

from benchmarks.coverage.text import Processor
from tests.pipelines import Maker, maker
from tests.pipelines_qwen import make_qwen_scheduler, qwen_pictures

SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "context_in_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
SIZE = {"height": 128, "width": 192}  # pixels; a token is 16 wide, whatever the autoencoder


def make_qwen21_pipeline(**sizes: Any) -> Any:
    """sizes: of the transformer, where they differ from SIZES."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1] * 5, num_res_blocks=1, in_channels=4, out_channels=4,
        latents_mean=[-0.7, 0.1, 0.5, 0.9], latents_std=[2.8, 1.4, 2.3, 0.8],
    ).eval()  # fmt: skip
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=make_qwen_scheduler(), vae=vae, text_encoder=None, processor=Processor(),
        transformer=QwenImage21Transformer2DModel(**(SIZES | sizes)).eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen21_pictures(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """As `qwen_pictures`, of 8x12 tokens."""
    return qwen_pictures(samples) | SIZE | overrides


PIPELINES: dict[str, Maker] = {
    "QwenImage21Pipeline": maker(make_qwen21_pipeline, qwen21_pictures, true_cfg_scale=2.5, **SIZE)
}
