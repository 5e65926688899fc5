"""Small random Qwen-Image pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)

from tests.pipelines import pictures, stirred

SIZES = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}


def make_qwen_transformer(**overrides: Any) -> QwenImageTransformer2DModel:
    return copy.deepcopy(_transformer(**overrides))


def make_qwen_controlnet(**overrides: Any) -> QwenImageControlNetModel:
    return copy.deepcopy(_controlnet(**overrides))


@cache  # its rotary tables of 4096 places take five times as long as a copy
def _transformer(**overrides: Any) -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(**(SIZES | overrides)).eval()


@cache
def _controlnet(**overrides: Any) -> QwenImageControlNetModel:
    torch.manual_seed(1)
    return stirred(QwenImageControlNetModel(**(SIZES | overrides)).eval())


def make_qwen_vae() -> AutoencoderKLQwenImage:
    """Factor 2, so that a token is 4 pixels wide."""
    torch.manual_seed(2)
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[-0.7, 0.1, 0.5, 0.9], latents_std=[2.8, 1.4, 2.3, 0.8],
    ).eval()  # fmt: skip


def make_qwen_scheduler(**overrides: Any) -> FlowMatchEulerDiscreteScheduler:
    """With the settings of the released checkpoints."""
    settings = {
        "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
        "max_image_seq_len": 8192, "shift_terminal": 0.02,
    }  # fmt: skip
    return FlowMatchEulerDiscreteScheduler(**(settings | overrides))


def make_qwen_pipeline(
    cls: type = diffusers.QwenImagePipeline, transformer: dict[str, Any] | None = None, **components: Any
) -> Any:
    """transformer: sizes that differ from SIZES."""
    pipe = cls(
        scheduler=make_qwen_scheduler(), transformer=make_qwen_transformer(**(transformer or {})),
        vae=make_qwen_vae(), text_encoder=None, tokenizer=None, **components,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_pictures(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """As `pictures`; the prompts are of different lengths, padded to seven tokens."""
    given = {name: value for name, value in pictures(samples).items() if "pooled" not in name}
    for name, longest in (("prompt_embeds_mask", 7), ("negative_prompt_embeds_mask", 5)):
        given[name] = torch.stack([(torch.arange(7) < longest - sample % 3).long() for sample in samples])
    return given | overrides
