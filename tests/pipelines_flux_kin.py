"""Small random pipelines of FLUX.1's kin, Chroma and LongCat-Image, and the arguments to call them with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, wraps
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from torch import Tensor

from tests.pipelines import Maker, make_vae, maker, pictures, random_image, right_half

SIZES = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": [4, 4, 8],
}


def make_chroma_pipeline(cls: type = diffusers.ChromaPipeline) -> Any:
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=16, approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1, **SIZES
    ).eval()
    transformer.register_to_config(guidance_embeds=False)  # for which stock's inpainting asks
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), transformer=transformer,
        vae=make_vae(), text_encoder=None, tokenizer=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chroma_pictures(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """As `pictures`; the prompts are of different lengths, padded to seven tokens."""
    given = {name: value for name, value in pictures(samples).items() if "pooled" not in name}
    for name, longest in (("prompt_attention_mask", 7), ("negative_prompt_attention_mask", 5)):
        given[name] = torch.stack([torch.arange(7) < longest - sample % 3 for sample in samples])
    return given | overrides


class _NoProcessor:
    """The edit pipeline takes a part of it as it is made."""

    image_processor = None


class _OfEmbeddings:
    """LongCat-Image's stock `encode_prompt` fails for embeddings alone; this one hands them on."""

    def encode_prompt(self, prompt_embeds: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        words = torch.arange(prompt_embeds.shape[1], dtype=torch.float32, device=prompt_embeds.device)
        return prompt_embeds, torch.stack([torch.zeros_like(words), words, words], -1)


class LongCatImagePipeline(_OfEmbeddings, diffusers.LongCatImagePipeline):
    pass


class LongCatImageEditPipeline(_OfEmbeddings, diffusers.LongCatImageEditPipeline):
    @wraps(diffusers.LongCatImageEditPipeline.__call__)
    def __call__(self, *args: Any, **given: Any) -> Any:
        """Stock makes every picture of a million pixels."""
        with mock.patch.object(pipeline_longcat_image_edit, "calculate_dimensions", lambda area, ratio: (48, 32)):
            return super().__call__(*args, **given)


def make_longcat_pipeline(cls: type = LongCatImagePipeline) -> Any:
    torch.manual_seed(0)
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=make_vae(16),
        transformer=LongCatImageTransformer2DModel(in_channels=64, pooled_projection_dim=32, **SIZES).eval(),
        text_encoder=None, tokenizer=None, text_processor=_NoProcessor(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def longcat_pictures(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    given = {name: value for name, value in pictures(samples).items() if "pooled" not in name}
    return given | {"enable_prompt_rewrite": False} | overrides


ENTERING = {"image": random_image(32, 48), "strength": 0.9}
SIBLINGS: dict[str, Maker] = {
    "ChromaPipeline": maker(make_chroma_pipeline, chroma_pictures),
    "ChromaImg2ImgPipeline": maker(
        partial(make_chroma_pipeline, diffusers.ChromaImg2ImgPipeline), chroma_pictures, **ENTERING
    ),
    "ChromaInpaintPipeline": maker(
        partial(make_chroma_pipeline, diffusers.ChromaInpaintPipeline), chroma_pictures, **ENTERING,
        mask_image=right_half(32, 48),
    ),
    "LongCatImagePipeline": maker(make_longcat_pipeline, longcat_pictures),
    "LongCatImageEditPipeline": maker(
        partial(make_longcat_pipeline, LongCatImageEditPipeline), longcat_pictures, image=random_image(32, 48)
    ),
}  # fmt: skip
