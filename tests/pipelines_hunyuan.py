"""Small random HunyuanVideo 1.5 pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import PIL.Image
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15ByT5TextProjection
from torch import Tensor

from tests.pipelines import Maker

FRAMES, ROWS, COLUMNS = 3, 4, 10  # tokens, each of 4 x 4 pixels
SIZES = {
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 32,
    "text_embed_2_dim": 20,
    "image_embed_dim": 16,
    "rope_axes_dim": (4, 4, 4),
    "target_size": 32,
}


def guided(stock: Any) -> Any:
    """A pipeline's `__call__` that takes the scale of its guider as an argument, as other families' do."""

    def __call__(self: Any, *args: Any, guidance_scale: float = 2.5, **given: Any) -> Any:
        self.guider = ClassifierFreeGuidance(guidance_scale=guidance_scale)
        self.vision_num_semantic_tokens = 3
        return stock(self, *args, **given)

    signature = inspect.signature(stock)
    scale = inspect.Parameter("guidance_scale", inspect.Parameter.KEYWORD_ONLY, default=2.5)
    __call__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), scale])
    return __call__


class HunyuanVideo15Pipeline(diffusers.HunyuanVideo15Pipeline):
    __call__ = guided(diffusers.HunyuanVideo15Pipeline.__call__)


class HunyuanVideo15ImageToVideoPipeline(diffusers.HunyuanVideo15ImageToVideoPipeline):
    __call__ = guided(diffusers.HunyuanVideo15ImageToVideoPipeline.__call__)

    def encode_image(self, image: Any, batch_size: int, device: Any, dtype: torch.dtype) -> Tensor:
        """Without an encoder."""
        return torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(9)).repeat(batch_size, 1, 1).to(dtype)


def make_hunyuan_pipeline(cls: Any = HunyuanVideo15Pipeline) -> Any:
    torch.manual_seed(0)
    transformer = HunyuanVideo15Transformer3DModel(patch_size=1, patch_size_t=1, **SIZES)
    transformer.context_embedder_2 = HunyuanVideo15ByT5TextProjection(20, 16, 24)  # stock's is 2048 wide in any model
    transformer.eval()
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ).eval()  # fmt: skip
    more = {"image_encoder": None, "feature_extractor": None} if cls is HunyuanVideo15ImageToVideoPipeline else {}
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, transformer=transformer, text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, guider=ClassifierFreeGuidance(), **more,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hunyuan_videos(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """Arguments for the videos of these numbers; the prompts are of different lengths, padded to seven tokens."""
    given: dict[str, Any] = {}
    for number, (name, longest) in enumerate((("prompt", 7), ("negative_prompt", 5))):
        for ending, width in (("", 32), ("_2", 20)):
            generators = [torch.Generator().manual_seed(10 * sample + number) for sample in samples]
            given[f"{name}_embeds{ending}"] = torch.stack([torch.randn(7, width, generator=g) for g in generators])
            counts = [torch.arange(7) < longest - sample % 3 for sample in samples]
            given[f"{name}_embeds_mask{ending}"] = torch.stack(counts).float()
    return {
        **given,
        "height": 4 * ROWS,
        "width": 4 * COLUMNS,
        "num_frames": 4 * FRAMES - 3,
        "num_inference_steps": 8,
        "generator": [torch.Generator().manual_seed(100 + i) for i in samples],
        "output_type": "latent",
    } | overrides


def _text_to_video() -> Any:
    return make_hunyuan_pipeline(), partial(hunyuan_videos, (0,), guidance_scale=2.5)


def _image_to_video() -> Any:
    def given() -> dict[str, Any]:
        sized = ("height", "width")
        arguments = {name: value for name, value in hunyuan_videos((0,)).items() if name not in sized}
        return arguments | {"image": PIL.Image.new("RGB", (32, 32), (200, 30, 30)), "guidance_scale": 2.5}

    return make_hunyuan_pipeline(HunyuanVideo15ImageToVideoPipeline), given


SIBLINGS: dict[str, Maker] = {
    "HunyuanVideo15Pipeline": _text_to_video,
    "HunyuanVideo15ImageToVideoPipeline": _image_to_video,
}
