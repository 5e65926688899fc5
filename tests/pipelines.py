"""Small random FLUX and SD3 pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UniPCMultistepScheduler,
)

from ralu_cache.engine.pipeline import handle_of

HEIGHT, WIDTH = 32, 48  # pixels; the autoencoder below has factor 2, so a token is 4 pixels wide
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
SD3_SIZES = {
    "sample_size": 32,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 40,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}


def make_transformer(in_channels: int = 16, out_channels: int | None = None) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(in_channels=in_channels, out_channels=out_channels, **SIZES).eval()


def make_controlnet() -> FluxControlNetModel:
    torch.manual_seed(1)
    return stirred(FluxControlNetModel(in_channels=16, **SIZES).eval())


def stirred(net: Any) -> Any:
    """Without zero-initialised outputs, which would hide mistakes."""
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def make_pipeline(cls: type = diffusers.FluxPipeline, in_channels: int = 16, **components: Any) -> Any:
    transformer = make_transformer(in_channels, 16 if in_channels != 16 else None)
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), transformer=transformer,
        vae=make_vae(), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, **components,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_vae(channels: int = 4) -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4, 4), layers_per_block=1,
        latent_channels=channels, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.0609, scaling_factor=1.5035, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def make_sd3_transformer(channels: int = 4, in_channels: int | None = None, **overrides: Any) -> SD3Transformer2DModel:
    """Three blocks: the first attends twice, the last one drops the text."""
    torch.manual_seed(0)
    sizes = SD3_SIZES | {"num_layers": 3, "in_channels": in_channels or channels, "out_channels": channels}
    return SD3Transformer2DModel(**(sizes | overrides)).eval()


def make_sd3_controlnet(**overrides: Any) -> SD3ControlNetModel:
    torch.manual_seed(1)
    sizes = SD3_SIZES | {"num_layers": 2, "in_channels": 4, "dual_attention_layers": ()}
    return stirred(SD3ControlNetModel(**(sizes | overrides)).eval())


def make_sd3_pipeline(
    cls: type = diffusers.StableDiffusion3Pipeline, channels: int = 4, in_channels: int | None = None, **components: Any
) -> Any:
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), transformer=make_sd3_transformer(channels, in_channels),
        vae=make_vae(channels), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None, **components,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def nothing_under_way(pipe: Any) -> bool:
    """True if an accelerated pipeline holds no call, and its scheduler is the user's own."""
    stock = (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)
    return not len(handle_of(pipe)._calls) and type(pipe.scheduler) in stock


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
    return pictures(range(batch), **({"true_cfg_scale": 2.5} | overrides))


def pictures(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """Arguments for the pictures of these numbers; a picture's do not depend on which others are asked for."""
    return {
        **{name: rows[list(samples)] for name, rows in embeddings(max(samples) + 1).items()},
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 8,
        "generator": [torch.Generator().manual_seed(100 + i) for i in samples],
        "output_type": "latent",
    } | overrides


def random_image(height: int = HEIGHT, width: int = WIDTH) -> PIL.Image.Image:
    return PIL.Image.fromarray((np.random.default_rng(0).random((height, width, 3)) * 255).astype("uint8"))


def right_half(height: int = HEIGHT, width: int = WIDTH) -> PIL.Image.Image:
    """A mask: the right half is to be drawn."""
    mask = PIL.Image.new("L", (width, height))
    mask.paste(255, (width // 2, 0, width, height))
    return mask


Maker = Callable[[], tuple[Any, Callable[[], dict[str, Any]]]]
"""Makes a pipeline, and what makes its call's arguments anew: generators can be used once."""


def maker(make: Callable[[], Any], arguments: Callable[..., dict[str, Any]], **more: Any) -> Maker:
    """Of a small picture, of the arguments (at guidance 2.5) those that the pipeline's call knows."""

    def made() -> tuple[Any, Callable[[], dict[str, Any]]]:
        pipe = make()
        known = inspect.signature(type(pipe).__call__).parameters
        given = {"guidance_scale": 2.5, "height": 32, "width": 48} | more
        return pipe, lambda: {name: value for name, value in arguments((0,), **given).items() if name in known}

    return made
