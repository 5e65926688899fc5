"""Assembly of the FluxPipeline from its trained and frozen parts."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from benchmarks.tiny_flux.text import TextModels, build_text_models


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Dynamic shifting from 0.4 at 64 tokens to 0.9 at 256."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=64, max_image_seq_len=256, base_shift=0.4, max_shift=0.9
    )


def load_text_models(folder: Path | None) -> TextModels:
    """The frozen text parts of a saved pipeline, or freshly built ones.

    A model that is trained further keeps the encoders that it was trained with, whatever another LAPACK would build.
    """
    if folder is None:
        return build_text_models()
    return TextModels(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).requires_grad_(False),
        T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
        T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).requires_grad_(False),
    )


def save_pipeline(transformer: Path, vae: Path, text: TextModels, folder: Path) -> None:
    """Save a float16 pipeline that `FluxPipeline.from_pretrained(folder)` loads."""
    pipeline = FluxPipeline(
        scheduler=build_scheduler(),
        vae=AutoencoderKL.from_pretrained(vae, dtype=torch.float16),
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=FluxTransformer2DModel.from_pretrained(transformer, dtype=torch.float16),
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    clean_configs(folder)


def clean_configs(folder: Path) -> None:
    """Take the folders that parts were loaded from out of a saved pipeline."""
    for config in folder.glob("*/config.json"):
        entries = json.loads(config.read_text())
        entries.pop("_name_or_path", None)
        config.write_text(json.dumps(entries, indent=2) + "\n")
