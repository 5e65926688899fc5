"""Frozen, seeded text encoders and word-level tokenizers for the scene grammar.

Nothing here is trained. The one-layer T5 has zero queries and keys, and a relative-position bias that makes every head
look at exactly one neighbour (-1, +1, ... -4, +4): a word's output is itself plus a random projection of each
neighbour, so "circle" knows it is "red". The CLIP attends uniformly; its pooled output is word and position statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from benchmarks.tiny_flux.scenes import WORDS

T5_WIDTH, T5_LENGTH, T5_HEADS = 96, 16, 8
CLIP_WIDTH, CLIP_LENGTH = 64, 20
Clip = TypeVar("Clip", CLIPTextModel, CLIPTextModelWithProjection)
HEAD_OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4)
NEIGHBOUR_GAINS = {1: 1.0, 2: 0.8, 3: 0.6, 4: 0.5}


@dataclass(frozen=True)
class TextModels:
    """The four text parts of a FluxPipeline."""

    clip_tokenizer: CLIPTokenizer
    clip: CLIPTextModel
    t5_tokenizer: T5TokenizerFast
    t5: T5EncoderModel

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token features (B, 16, 96) and pooled features (B, 64), exactly as FluxPipeline computes them."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        words = self.t5_tokenizer(prompts, max_length=T5_LENGTH, **options).input_ids
        pooled = self.clip_tokenizer(prompts, max_length=CLIP_LENGTH, **options).input_ids
        return self.t5(words)[0], self.clip(pooled).pooler_output


def build_text_models() -> TextModels:
    """Both encoders and tokenizers from their seeds, rounded through float16: what is trained on is what is stored.

    Built on one thread: the rounding of the orthogonal matrices' QR depends on the number of threads.
    """
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clip, t5 = build_clip(len(clip_tokenizer)), build_t5(len(t5_tokenizer))
    finally:
        torch.set_num_threads(threads)
    return TextModels(
        clip_tokenizer,
        clip.requires_grad_(False).half().float(),
        t5_tokenizer,
        t5.requires_grad_(False).half().float(),
    )


def build_clip_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer whose merges turn every word of the grammar into one token."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    merges: list[tuple[str, str]] = []
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocabulary[letter] = len(vocabulary)
        vocabulary[f"{letter}</w>"] = len(vocabulary)
    for word in WORDS:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols := _merge(symbols, merges)) > 1:
            merges.append((symbols[0], symbols[1]))
            vocabulary.setdefault(symbols[0] + symbols[1], len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def _merge(symbols: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply byte-pair merges in the order of their rank until none fits."""
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        ranked = [(rank[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in rank]
        if not ranked:
            return symbols
        i = min(ranked)[1]
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def build_t5_tokenizer(words: Sequence[str] = WORDS) -> T5TokenizerFast:
    """A unigram tokenizer with one token a word; any other word becomes <unk>."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -8.0)]
    vocabulary = special + [(f"\u2581{word}", -2.0) for word in words]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=T5_LENGTH)


def _orthogonal(rows: int, columns: int, generator: torch.Generator, gain: float) -> Tensor:
    """A random matrix with orthonormal rows or columns, times `gain`."""
    weight = torch.randn(rows, columns, generator=generator)
    q = torch.linalg.qr(weight if rows >= columns else weight.T)[0]
    return (q if rows >= columns else q.T) * gain


@torch.no_grad()
def build_t5(vocabulary_size: int, seed: int = 1) -> T5EncoderModel:
    """One layer; head h copies the word at `HEAD_OFFSETS[h]` through a random projection."""
    generator = torch.Generator().manual_seed(seed)
    width, head = T5_WIDTH, T5_WIDTH // T5_HEADS
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=width,
        d_kv=head,
        d_ff=2 * width,
        num_layers=1,
        num_heads=T5_HEADS,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        feed_forward_proj="relu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    model = T5EncoderModel(config).eval()
    model.shared.weight.copy_(torch.randn(vocabulary_size, width, generator=generator))
    attention = model.encoder.block[0].layer[0].SelfAttention
    feed_forward = model.encoder.block[0].layer[1].DenseReluDense
    attention.q.weight.zero_()
    attention.k.weight.zero_()
    bias = torch.zeros(32, T5_HEADS)
    value = torch.randn(width, width, generator=generator) / width**0.5
    for i, offset in enumerate(HEAD_OFFSETS):
        bias[abs(offset) + (16 if offset > 0 else 0), i] = 14.0
        value[i * head : (i + 1) * head] *= NEIGHBOUR_GAINS[abs(offset)] * (width / head) ** 0.5
    attention.relative_attention_bias.weight.copy_(bias)
    attention.v.weight.copy_(value)
    attention.o.weight.copy_(_orthogonal(width, width, generator, 0.6))
    feed_forward.wi.weight.copy_(torch.randn(2 * width, width, generator=generator) / width**0.5)
    feed_forward.wo.weight.copy_(torch.randn(width, 2 * width, generator=generator) / (2 * width) ** 0.5 * 0.8)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
    return model


@torch.no_grad()
def build_clip(vocabulary_size: int, seed: int = 2, width: int = CLIP_WIDTH, make: type[Clip] = CLIPTextModel) -> Clip:
    """Two layers of uniform causal attention with large value and output gains."""
    generator = torch.Generator().manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=width,
    )
    model = make(config).eval()
    for name, p in model.named_parameters():
        if "layer_norm" in name or "layernorm" in name:
            p.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias") or "q_proj" in name or "k_proj" in name:
            p.zero_()
        elif "token_embedding" in name:
            p.copy_(torch.randn(p.shape, generator=generator))
        elif "position_embedding" in name:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
        elif "v_proj" in name or "out_proj" in name:
            p.copy_(_orthogonal(width, width, generator, 2.2 if "out_proj" in name else 1.0))
        else:
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)
    return model
