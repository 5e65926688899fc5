"""The parts of the tiny StableDiffusion3Pipeline: tiny FLUX's autoencoder and frozen T5, two designed CLIPs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from benchmarks.tiny_flux.pipeline import clean_configs, load_text_models
from benchmarks.tiny_flux.text import CLIP_WIDTH, T5_LENGTH, T5_WIDTH, build_clip

HEADS, HEAD, BLOCKS = 4, 48, 5
TABLE = 32  # sides of the table of positions: pictures of up to 256 pixels
SECOND_CLIP_WIDTH = T5_WIDTH - CLIP_WIDTH  # side by side the two CLIPs are as wide as the T5
ZERO_AT_START = ("proj_out", "norm_out", "norm1.linear", "norm1_context.linear")


def build_transformer() -> SD3Transformer2DModel:
    """The untrained tiny transformer, of the make of SD3.5 medium: the first block attends twice, RMS-normed.

    Modulations and the output start at zero, so every block starts as identity.
    """
    model = SD3Transformer2DModel(
        sample_size=TABLE, patch_size=2, in_channels=4, out_channels=4, num_layers=BLOCKS, attention_head_dim=HEAD,
        num_attention_heads=HEADS, caption_projection_dim=HEADS * HEAD, joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH + SECOND_CLIP_WIDTH, pos_embed_max_size=TABLE,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out") or any(part in name for part in ZERO_AT_START[1:]) or name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim in (2, 4):
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=0.02 if "time_text" in name else 0.8 * fan_in**-0.5)
    return model


def assemble(transformer: SD3Transformer2DModel, flux: Path) -> StableDiffusion3Pipeline:
    """The pipeline around a transformer, float32, with parts of the tiny FLUX pipeline in `flux`."""
    text = load_text_models(flux)
    clips = [
        build_clip(len(text.clip_tokenizer), seed, width, CLIPTextModelWithProjection).requires_grad_(False)
        for seed, width in ((2, CLIP_WIDTH), (3, SECOND_CLIP_WIDTH))
    ]
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.2),
        vae=AutoencoderKL.from_pretrained(flux / "vae", dtype=torch.float32),
        text_encoder=clips[0].half().float(), tokenizer=text.clip_tokenizer,
        text_encoder_2=clips[1].half().float(), tokenizer_2=text.clip_tokenizer,
        text_encoder_3=text.t5, tokenizer_3=text.t5_tokenizer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def encode_prompts(pipe: StableDiffusion3Pipeline, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Text features (B, 36, 96), of CLIP and then T5, and pooled features (B, 96), as the pipeline computes them."""
    words, pooled = [], []
    for start in range(0, len(prompts), 250):
        batch = list(prompts[start : start + 250])
        found = pipe.encode_prompt(
            batch, batch, batch, do_classifier_free_guidance=False, max_sequence_length=T5_LENGTH
        )
        words.append(found[0])
        pooled.append(found[2])
    return torch.cat(words), torch.cat(pooled)


def save_pipeline(pipe: StableDiffusion3Pipeline, folder: Path) -> None:
    """Save a float16 pipeline that `StableDiffusion3Pipeline.from_pretrained(folder)` loads."""
    pipe.to(torch.float16).save_pretrained(folder)
    clean_configs(folder)
