"""A small random LTX-Video pipeline of stock diffusers classes, and the arguments to call it with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel

from tests.pipelines import Maker

FRAMES, ROWS, COLUMNS = 3, 4, 6  # tokens, each of 32 x 32 pixels in 8 frames


def make_ltx_pipeline() -> Any:
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=32,
    ).eval()  # fmt: skip
    for name, weight in transformer.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight")):
            torch.nn.init.normal_(weight, 1.0, 0.5)
    pipe = diffusers.LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=None,
        transformer=transformer, text_encoder=None, tokenizer=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ltx_videos(samples: Sequence[int], **overrides: Any) -> dict[str, Any]:
    """Arguments for the videos of these numbers; the prompts are of different lengths, padded to seven tokens."""
    given: dict[str, Any] = {}
    for number, (name, longest) in enumerate((("prompt", 7), ("negative_prompt", 5))):
        drawn = [torch.randn(7, 32, generator=torch.Generator().manual_seed(10 * i + number)) for i in samples]
        given[f"{name}_embeds"] = torch.stack(drawn)
        counts = [torch.arange(7) < longest - sample % 3 for sample in samples]
        given[f"{name}_attention_mask"] = torch.stack(counts).float()
    return {
        **given,
        "height": 32 * ROWS,
        "width": 32 * COLUMNS,
        "num_frames": 8 * FRAMES - 7,
        "num_inference_steps": 8,
        "generator": [torch.Generator().manual_seed(100 + i) for i in samples],
        "output_type": "latent",
    } | overrides


SIBLINGS: dict[str, Maker] = {
    "LTXPipeline": lambda: (make_ltx_pipeline(), partial(ltx_videos, (0,), guidance_scale=2.5)),
}
