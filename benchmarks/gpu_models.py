"""Pipelines of real size with random weights: the public architectures, built on the device, without text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn

_AUTOENCODER = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "use_quant_conv": False, "use_post_quant_conv": False,
    "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """An architecture: the transformer's and autoencoder's configurations, text tokens, and pixels a side to run at."""

    name: str
    transformer: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    text_tokens: int
    size: int
    large: int


FLUX_DEV = Shape(
    name="FLUX.1-dev",
    transformer={
        "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    autoencoder=_AUTOENCODER,
    text_tokens=512,
    size=1024,
    large=2048,
)  # fmt: skip
TINY = Shape(
    name="tiny random FLUX",
    transformer={
        "in_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True, "axes_dims_rope": (4, 4, 8),
    },
    autoencoder={**_AUTOENCODER, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    text_tokens=8,
    size=128,
    large=256,
)  # fmt: skip
SHAPES = {"flux-dev": FLUX_DEV, "tiny": TINY}


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> FluxPipeline:
    """The stock pipeline in this shape; weights are drawn on the device, so nothing is copied there."""
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**shape.transformer).eval().to(dtype)
        autoencoder = AutoencoderKL(**shape.autoencoder).eval().to(dtype)
    for module in (transformer, autoencoder):
        module.to_empty(device=device)
        _draw(module)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096,
        shift=3.0,
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=scheduler, vae=autoencoder, transformer=transformer,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    """Matrices of standard deviation 0.02, scales 1, offsets 0: activations stay finite through any depth."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def call_arguments(pipe: FluxPipeline, shape: Shape, batch: int, size: int) -> dict[str, Any]:
    """Embeddings of random prompts and the rest of a pipeline call's arguments."""
    device, dtype = pipe.transformer.device, pipe.transformer.dtype
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=device, dtype=dtype)

    return {
        "prompt_embeds": drawn(batch, shape.text_tokens, shape.transformer["joint_attention_dim"]),
        "pooled_prompt_embeds": drawn(batch, shape.transformer["pooled_projection_dim"]),
        "height": size,
        "width": size,
        "guidance_scale": 3.5,
        "generator": [torch.Generator(device).manual_seed(i) for i in range(batch)],
        "output_type": "pt",
    }
