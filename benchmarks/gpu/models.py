"""Pipelines of real size with random weights: the public architectures, built on the device, without text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn

_AUTOENCODER = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "use_quant_conv": False, "use_post_quant_conv": False,
    "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip
_SMALL_AUTOENCODER = {**_AUTOENCODER, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
_SD3_SCALE = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
_FLUX_SCHEDULER = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096, "shift": 3.0,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """An architecture: the transformer's and autoencoder's configurations, text tokens, and pixels a side to run at.

    guidance: of the call; SD3 stacks both branches in one call of twice the batch. presets: the family's own, and those
    that both families run, so that they can be compared.
    """

    name: str
    family: str  # "flux" or "sd3"
    transformer: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    text_tokens: int
    guidance: float
    presets: tuple[str, ...]
    size: int
    large: int

    def shallow(self, blocks: int) -> Shape:
        """The same width, and so many blocks of each kind."""
        counts = {name: blocks for name in ("num_layers", "num_single_layers") if name in self.transformer}
        return replace(self, transformer={**self.transformer, **counts})


FLUX_DEV = Shape(
    name="FLUX.1-dev",
    family="flux",
    transformer={
        "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    autoencoder=_AUTOENCODER,
    scheduler=_FLUX_SCHEDULER,
    text_tokens=512,
    guidance=3.5,
    presets=("ralu-4x", "ralu-5x", "ralu-7x"),
    size=1024,
    large=2048,
)  # fmt: skip
SD35_LARGE = Shape(
    name="SD3.5-large",
    family="sd3",
    transformer={
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 38,
        "attention_head_dim": 64, "num_attention_heads": 38, "caption_projection_dim": 2432,
        "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
    },
    autoencoder={**_AUTOENCODER, **_SD3_SCALE},
    scheduler={"shift": 3.0},
    text_tokens=77 + 256,
    guidance=3.5,
    presets=("ralu-2x", "ralu-3x", "ralu-4x", "ralu-7x"),
    size=1024,
    large=2048,
)  # fmt: skip
TINY_FLUX = replace(
    FLUX_DEV,
    name="tiny random FLUX",
    transformer={
        "in_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True, "axes_dims_rope": (4, 4, 8),
    },
    autoencoder=_SMALL_AUTOENCODER,
    text_tokens=8,
    size=128,
    large=256,
)  # fmt: skip
TINY_SD3 = replace(
    SD35_LARGE,
    name="tiny random SD3",
    transformer={
        "sample_size": 16, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2,
        "attention_head_dim": 16, "num_attention_heads": 2, "caption_projection_dim": 32, "joint_attention_dim": 32,
        "pooled_projection_dim": 32, "pos_embed_max_size": 24, "qk_norm": "rms_norm",
    },
    autoencoder={**_SMALL_AUTOENCODER, **_SD3_SCALE},
    text_tokens=8,
    size=128,
    large=256,
)  # fmt: skip
SHAPES = {"flux-dev": FLUX_DEV, "sd35-large": SD35_LARGE, "tiny": TINY_FLUX, "tiny-sd3-shape": TINY_SD3}


def make_transformer(shape: Shape) -> Any:
    """On the device of the context, with whatever weights the class begins with."""
    kind = FluxTransformer2DModel if shape.family == "flux" else SD3Transformer2DModel
    return kind(**shape.transformer).eval()


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """The stock pipeline in this shape; weights are drawn on the device, so nothing is copied there."""
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = make_transformer(shape).to(dtype)
        autoencoder = AutoencoderKL(**shape.autoencoder).eval().to(dtype)
    table = _position_table(shape)
    for module in (transformer, autoencoder):
        module.to_empty(device=device)
        _draw(module)
    if table is not None:
        transformer.pos_embed.pos_embed.copy_(table)
    scheduler = FlowMatchEulerDiscreteScheduler(**shape.scheduler)
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    parts = {"scheduler": scheduler, "vae": autoencoder, "transformer": transformer, **none}
    if shape.family == "flux":
        pipe = FluxPipeline(**parts)
    else:
        pipe = StableDiffusion3Pipeline(**parts, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _position_table(shape: Shape) -> torch.Tensor | None:
    """SD3 keeps its table of positions as a buffer, which a model on the meta device has no values for."""
    if shape.family != "sd3":
        return None
    with torch.device("cpu"):
        return make_transformer(shape.shallow(0)).pos_embed.pos_embed


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    """Matrices that keep the size of what they are given, scales 1, offsets 0: activations stay finite at any depth."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def call_arguments(pipe: Any, shape: Shape, batch: int, size: int) -> dict[str, Any]:
    """Embeddings of random prompts and the rest of a pipeline call's arguments."""
    device, dtype = pipe.transformer.device, pipe.transformer.dtype
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=device, dtype=dtype)

    width, pooled = (shape.transformer[name] for name in ("joint_attention_dim", "pooled_projection_dim"))
    given = {"prompt_embeds": drawn(batch, shape.text_tokens, width), "pooled_prompt_embeds": drawn(batch, pooled)}
    if shape.family == "sd3":
        given["negative_prompt_embeds"] = drawn(batch, shape.text_tokens, width)
        given["negative_pooled_prompt_embeds"] = drawn(batch, pooled)
    return {
        **given,
        "height": size,
        "width": size,
        "guidance_scale": shape.guidance,
        "generator": [torch.Generator(device).manual_seed(i) for i in range(batch)],
        "output_type": "pt",
    }
