"""Small random Wan pipelines of stock diffusers classes, and the arguments to call them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

FRAMES, ROWS, COLUMNS = 3, 4, 10  # tokens
SIZES = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 40,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def make_wan_transformer(seed: int = 0, **overrides: Any) -> WanTransformer3DModel:
    """The weights of its norms are no ones, so that keys differ in length."""
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(**(SIZES | overrides)).eval()
    for block in transformer.blocks:
        for norm in (block.attn1.norm_q, block.attn1.norm_k, block.attn2.norm_q, block.attn2.norm_k):
            torch.nn.init.normal_(norm.weight, 1.0, 0.5)
    return transformer


def make_wan_vae() -> AutoencoderKLWan:
    torch.manual_seed(2)
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def make_wan_pipeline(transformer: Any = None, cls: type = WanPipeline, **components: Any) -> Any:
    pipe = cls(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), transformer=transformer or make_wan_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **components,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_unipc_pipeline() -> Any:
    """On the scheduler that Wan was released with."""
    pipe = make_wan_pipeline()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return pipe


def make_wan_image_pipeline(**overrides: Any) -> Any:
    """Wan 2.1's image-to-video: 20 conditioning channels, and five tokens of a picture."""
    sizes = {"in_channels": 36, "image_dim": 20, "added_kv_proj_dim": 24} | overrides
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=20, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    return make_wan_pipeline(
        make_wan_transformer(**sizes), WanImageToVideoPipeline, image_encoder=CLIPVisionModel(config).eval(),
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )  # fmt: skip


def block(colour: tuple[int, int, int] = (200, 30, 30)) -> PIL.Image.Image:
    """A picture to animate."""
    picture = PIL.Image.new("RGB", (16 * COLUMNS, 16 * ROWS), colour)
    picture.paste((20, 40, 220), (30, 10, 60, 50))
    return picture


def videos(samples: Sequence[int], words: int = 7, **overrides: Any) -> dict[str, Any]:
    """Arguments for the videos of these numbers; a video's do not depend on which others are asked for."""
    drawn = [torch.randn(2, words, 32, generator=torch.Generator().manual_seed(i)) for i in samples]
    prompts, negatives = torch.stack(drawn).unbind(1)
    return {
        "prompt_embeds": prompts,
        "negative_prompt_embeds": negatives,
        "height": 16 * ROWS,
        "width": 16 * COLUMNS,
        "num_frames": 4 * FRAMES - 3,
        "num_inference_steps": 8,
        "generator": [torch.Generator().manual_seed(100 + i) for i in samples],
        "output_type": "latent",
    } | overrides
