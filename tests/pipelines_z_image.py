"""Small random Z-Image pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

from tests.pipelines import Maker, make_vae, maker, pictures, random_image, right_half

SIZES = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 32,
    "axes_dims": [4, 6, 6],
    "axes_lens": [128, 16, 16],
}


def make_z_image_pipeline(cls: type = diffusers.ZImagePipeline) -> Any:
    """Its padding is no zeros, and the weights of its norms no ones."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(**SIZES).eval()
    norms = [weight for name, weight in transformer.named_parameters() if ".norm_" in name]
    for weight in (transformer.x_pad_token, transformer.cap_pad_token, *norms):
        torch.nn.init.normal_(weight, 1.0, 0.5)
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=make_vae(), transformer=transformer,
        text_encoder=None, tokenizer=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def z_image_pictures(samples: Sequence[int], longer: int = 0, **overrides: Any) -> dict[str, Any]:
    """As `pictures`; captions are lists, of lengths of their own. longer: tokens more of every other prompt."""
    given = {name: value for name, value in pictures(samples).items() if "embeds" not in name}
    drawn = [torch.randn(2, 80, 32, generator=torch.Generator().manual_seed(sample)) for sample in samples]
    given["prompt_embeds"] = [
        captions[0, : 7 + sample % 3 + longer * (sample % 2)] for captions, sample in zip(drawn, samples, strict=True)
    ]
    given["negative_prompt_embeds"] = [captions[1, :5] for captions in drawn]
    return given | overrides


ENTERING = {"image": random_image(32, 48), "strength": 0.9}
SIBLINGS: dict[str, Maker] = {
    "ZImagePipeline": maker(make_z_image_pipeline, z_image_pictures),
    "ZImageImg2ImgPipeline": maker(
        partial(make_z_image_pipeline, diffusers.ZImageImg2ImgPipeline), z_image_pictures, **ENTERING
    ),
    "ZImageInpaintPipeline": maker(
        partial(make_z_image_pipeline, diffusers.ZImageInpaintPipeline), z_image_pictures, **ENTERING,
        mask_image=right_half(32, 48),
    ),
}  # fmt: skip
