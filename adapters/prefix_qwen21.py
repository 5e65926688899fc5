"""What Qwen-Image 2.1's calls read of the sequence before the image, and its image tokens, which come in fours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ralu_cache.adapters.rotary import PerSampleTable

FOURS = 4  # the text encoder's slot for a picture stands for so many tokens
_ARGUMENTS = (  # of a block, in their order: gradient checkpointing goes by it
    "hidden_states", "modulation", "rotary_emb", "attention_mask", "target_token_mask", "layer_cache", "kv_cache_mode",
    "cache_write_slice", "segments", "key_valid",
)  # fmt: skip


@dataclass(frozen=True)
class SomeSamples:
    """The keys and values of some samples (k,) of a batch; picked for each block when it asks."""

    cache: Any
    samples: Tensor
    layer: int | None = None

    def get_layer(self, layer: int) -> SomeSamples:
        return SomeSamples(self.cache, self.samples, layer)

    def get(self) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.get_layer(self.layer).get()
        return keys[self.samples], values[self.samples]


class JointTable(PerSampleTable):
    """One of a whole sequence, of which a model may take a part of the tokens (a slice)."""

    def __getitem__(self, index: Any) -> Any:
        return JointTable(self.table[:, index])


def filled_up(tokens: int) -> int:
    return -(-tokens // FOURS) * FOURS


def without_filling(args: tuple[Any, ...], kwargs: Mapping[str, Any], image: int, before: int) -> dict[str, Any]:
    """A block's arguments by name, with a mask of keys that leaves out what stands behind so many image tokens.

    before: tokens that come before them.
    """
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    reads = given["kv_cache_mode"] == "cached"
    name, hidden = ("attention_mask" if reads else "key_valid"), given["hidden_states"]
    if not reads and given["attention_mask"] is not None:
        raise ValueError(
            f"{image} tokens, not a whole number of {FOURS}, are not supported with QwenImage21FlexAttnProcessor in "
            "the call that computes the text: use QwenImage21AttnProcessor, or another height and width"
        )
    valid = torch.arange(before + filled_up(image), device=hidden.device).expand(len(hidden), -1) < before + image
    valid = valid[:, None, None] if reads else valid
    return {**given, name: valid if given[name] is None else valid & given[name]}


def segments(call: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(tokens, place behind them) of each run of text and each condition image before the image."""
    slots = call["img_mask"][0, : call["encoder_hidden_states"].shape[1]].tolist()
    lengths, place = [prod(shape) for shape in call["img_shapes"][0][:-1]], 0
    found, end, words = [], 0, 0
    while place < len(slots):
        if not slots[place]:
            words, place = words + 1, place + 1
            continue
        if words:
            found.append((words, end := end + words))
        length, words = lengths.pop(0), 0
        found.append((length, end := end + length))
        place += length // FOURS
    return [*found, (words, end + words)] if words else found
