"""The parts of the tiny WanPipeline: its text encoder is tiny FLUX's designed T5 with a few more words."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import T5EncoderModel, T5TokenizerFast, UMT5Config, UMT5EncoderModel

from benchmarks.tiny_flux.pipeline import clean_configs
from benchmarks.tiny_flux.scenes import WORDS
from benchmarks.tiny_flux.text import T5_LENGTH, T5_WIDTH, build_t5_tokenizer
from benchmarks.tiny_wan.autoencoder import CHANNELS
from benchmarks.tiny_wan.scenes import NEW_WORDS

HEADS, HEAD, BLOCKS = 4, 48, 5
SHIFT = 2.5
NEW_WORDS_SEED = 11
ZERO_AT_START = ("attn2.to_out", "proj_out", "time_proj", "scale_shift_table")


def build_transformer() -> WanTransformer3DModel:
    """The untrained tiny transformer. Modulations, the text's attention and the output add nothing at first."""
    width = HEADS * HEAD
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=HEADS, attention_head_dim=HEAD, in_channels=CHANNELS,
        out_channels=CHANNELS, text_dim=T5_WIDTH, freq_dim=256, ffn_dim=4 * width, num_layers=BLOCKS,
        rope_max_seq_len=32,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or any(part in name for part in ZERO_AT_START):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=0.02 if "time_embedder" in name else 0.8 * fan_in**-0.5)
    return model


@torch.no_grad()
def build_text(flux: Path) -> tuple[T5TokenizerFast, UMT5EncoderModel]:
    """Tokenizer and encoder of the tiny FLUX in `flux`, with random features for the words that it lacks.

    With one layer a UMT5 is a T5, weight for weight.
    """
    source = T5EncoderModel.from_pretrained(flux / "text_encoder_2", dtype=torch.float32)
    tokenizer = build_t5_tokenizer((*WORDS, *NEW_WORDS))
    shared = {"vocab_size": len(tokenizer)}
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
             "relative_attention_max_distance", "dropout_rate", "feed_forward_proj")  # fmt: skip
    config = UMT5Config(**{name: getattr(source.config, name) for name in names}, **shared, use_cache=False)
    encoder = UMT5EncoderModel(config).eval().requires_grad_(False)
    state = source.state_dict()
    generator = torch.Generator().manual_seed(NEW_WORDS_SEED)
    new = torch.randn(len(NEW_WORDS), T5_WIDTH, generator=generator).half().float()
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        if name in state:
            state[name] = torch.cat([state[name], new])
    encoder.load_state_dict(state)
    return tokenizer, encoder


def assemble(transformer: WanTransformer3DModel, vae: AutoencoderKLWan, flux: Path) -> WanPipeline:
    """The pipeline around a transformer and an autoencoder, float32, with the text parts made from `flux`."""
    tokenizer, encoder = build_text(flux)
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def encode_prompts(text: tuple[T5TokenizerFast, UMT5EncoderModel], prompts: Sequence[str]) -> Tensor:
    """Text features (B, 16, 96) as the pipeline computes them: zero behind the prompt's end."""
    tokenizer, encoder = text
    pieces = []
    for start in range(0, len(prompts), 250):
        batch = list(prompts[start : start + 250])
        found = tokenizer(batch, padding="max_length", max_length=T5_LENGTH, truncation=True, return_tensors="pt")
        features = encoder(found.input_ids, found.attention_mask).last_hidden_state
        pieces.append(features * found.attention_mask[..., None])
    return torch.cat(pieces)


def save_pipeline(pipe: WanPipeline, folder: Path) -> None:
    """Save a float16 pipeline that `WanPipeline.from_pretrained(folder)` loads."""
    pipe.to(torch.float16).save_pretrained(folder)
    clean_configs(folder)
