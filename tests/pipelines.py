"""Small random FLUX pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel

HEIGHT, WIDTH = 64, 96  # pixels; the autoencoder below has factor 2, so a token is 4 pixels wide
TOKENS = (HEIGHT // 4) * (WIDTH // 4)
SIZES = {
    "patch_size": 1,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 4, 8],
    "guidance_embeds": True,
}


def make_transformer(in_channels: int = 16, out_channels: int | None = None) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(in_channels=in_channels, out_channels=out_channels, **SIZES).eval()


def make_controlnet() -> FluxControlNetModel:
    torch.manual_seed(1)
    net = FluxControlNetModel(in_channels=16, **SIZES).eval()
    for parameter in net.parameters():  # its zero-initialised outputs would hide mistakes
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def make_pipeline(cls: type = diffusers.FluxPipeline, in_channels: int = 16, **components: Any) -> Any:
    transformer = make_transformer(in_channels, 16 if in_channels != 16 else None)
    torch.manual_seed(2)
    vae = AutoencoderKL(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4, 4), layers_per_block=1, latent_channels=4,
        norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), transformer=transformer,
        vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, **components,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(batch: int, first: int = 100) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(batch)]


def embeddings(batch: int) -> dict[str, torch.Tensor]:
    """Random prompt embeddings; those of sample i do not depend on `batch`."""
    drawn: dict[str, list[torch.Tensor]] = {}
    for i in range(batch):
        generator = torch.Generator().manual_seed(i)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            drawn.setdefault(name, []).append(torch.randn(7, 32, generator=generator))
        for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
            drawn.setdefault(name, []).append(torch.randn(32, generator=generator))
    return {name: torch.stack(rows) for name, rows in drawn.items()}


def call_arguments(batch: int = 2, **overrides: Any) -> dict[str, Any]:
    return {
        **embeddings(batch),
        "true_cfg_scale": 2.5,
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 8,
        "generator": generators(batch),
        "output_type": "latent",
    } | overrides


def random_image(height: int = HEIGHT, width: int = WIDTH) -> PIL.Image.Image:
    return PIL.Image.fromarray((np.random.default_rng(0).random((height, width, 3)) * 255).astype("uint8"))
