"""Small random FLUX.2 pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from torch import Tensor

from tests.pipelines import Maker, maker, pictures, random_image, right_half

SIZES = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "timestep_guidance_channels": 16,
    "axes_dims_rope": (4, 4, 4, 4),
}


def make_flux2_vae(plain: bool = False) -> AutoencoderKLFlux2:
    """Factor 2, so that a token is 4 pixels wide. plain: its normalisation changes nothing, bit for bit."""
    torch.manual_seed(2)
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=1, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        batch_norm_eps=0.0 if plain else 1e-4,
    ).eval()  # fmt: skip
    if not plain:
        vae.bn.running_mean.normal_(std=0.5)
        vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def make_flux2_pipeline(cls: type = diffusers.Flux2KleinPipeline, plain: bool = True, **sizes: Any) -> Any:
    """plain: see `make_flux2_vae`; sizes: of the transformer, where they differ from SIZES."""
    torch.manual_seed(0)
    guided = {"guidance_embeds": cls is diffusers.Flux2Pipeline}
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=make_flux2_vae(plain),
        transformer=Flux2Transformer2DModel(**(SIZES | guided | sizes)).eval(), text_encoder=None, tokenizer=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux2_pictures(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """As `pictures`; there is no pooled prompt."""
    return {name: value for name, value in pictures(samples).items() if "pooled" not in name} | overrides


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) as a klein pipeline returns them, as it holds them while it draws (B, N, 4 C)."""
    return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


SIBLINGS: dict[str, Maker] = {
    "Flux2Pipeline": maker(partial(make_flux2_pipeline, diffusers.Flux2Pipeline), flux2_pictures),
    "Flux2KleinPipeline": maker(make_flux2_pipeline, flux2_pictures),
    "Flux2KleinInpaintPipeline": maker(
        partial(make_flux2_pipeline, diffusers.Flux2KleinInpaintPipeline, plain=False), flux2_pictures,
        image=random_image(32, 48), mask_image=right_half(32, 48), strength=0.9,
    ),
}  # fmt: skip
