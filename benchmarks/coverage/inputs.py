"""The arguments of a pipeline's call, by what its signature asks for."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.coverage.recipes import CALLS
from benchmarks.coverage.shrink import WIDTH

SIDE = 64  # pixels
FRAMES = 9
STEPS = 7


def learned(name: str) -> torch.Tensor:
    """What other models make of a picture: an embedding (1, d), or a hint of its depth (1, 3, H, W)."""
    shape = (1, 3, SIDE, SIDE) if name == "hint" else (1, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def mask() -> Image.Image:
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[: SIDE // 2] = 255
    return Image.fromarray(white)


PICTURES = (
    "image",
    "control_image",
    "reference_image",
    "pose_image",
    "conditioning_image",
    "condtioning_image",
    "example_image",
    "original_image",
    "image_1",
)
EMBEDDINGS = tuple(
    negative + name
    for negative in ("", "negative_")
    for name in (
        "prompt_embeds",
        "pooled_prompt_embeds",
        "prompt_embeds_mask",
        "prompt_attention_mask",
        "prompt_embeds_2",
        "prompt_embeds_mask_2",
        "prompt_attention_mask_2",
    )
)
WORDS = 8  # tokens of a prompt that is given embedded
LEARNED = ("image_embeds", "negative_image_embeds", "hint", "image_embeddings")
MASKS = ("mask_image", "mask", "control_mask", "mask_video")
VIDEOS = ("video", "pose_video", "face_video", "control_video", "conditioning_frames")


def arguments(pipe: Any, steps: int = STEPS) -> Iterator[dict[str, Any]]:
    """The arguments of a call, the likeliest first: with all pictures it takes, then with those that it must have."""
    signature = inspect.signature(type(pipe).__call__).parameters
    common: dict[str, Any] = {
        "num_inference_steps": steps, "height": SIDE, "width": SIDE, "num_frames": FRAMES, "video_length": FRAMES,
        "max_sequence_length": 16, "output_type": "latent", "prompt": "a red fox",
        "_auto_resize": False, "max_area": SIDE * SIDE, "resolution": SIDE,
        "text_encoder_out_layers": (0, 1, 2), "return_index": -1, "class_labels": [0],
        "source_subject_category": "a fox", "target_subject_category": "a fox",
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    common = {name: value for name, value in common.items() if name in signature}
    given = {name: picture() for name in PICTURES if name in signature}
    given |= {name: [picture(n) for n in range(FRAMES)] for name in VIDEOS if name in signature}
    given |= {name: mask() for name in MASKS if name in signature}
    must = inspect.Parameter.empty
    given |= {n: learned(n) for n in LEARNED if n in signature and signature[n].default is must}
    required = {n: v for n, v in given.items() if signature[n].default is inspect.Parameter.empty}
    common |= calls_of(type(pipe).__name__)
    yield {**common, **given}
    chosen: list[dict[str, Any]] = []
    for names in (PICTURES + MASKS + VIDEOS, PICTURES + MASKS, VIDEOS, ()):
        some = {**required, **{name: value for name, value in given.items() if name in names}}
        if some not in chosen:
            chosen.append(some)
    for some in chosen:
        yield {**common, **some}
    if "prompt_embeds" in signature and "prompt" in signature:  # what would embed it lacks a package, or is no toy
        embeddings: dict[str, Any] = {n: embedding(n) for n in EMBEDDINGS if n in signature}
        embeddings |= {name: None for name in ("prompt", "negative_prompt") if name in signature}
        for some in chosen:
            yield {**common, **some, **embeddings}


def calls_of(name: str) -> dict[str, Any]:
    """What the recipes say of a pipeline's call."""
    found: dict[str, Any] = {}
    for pattern, given in CALLS.items():
        if fnmatch.fnmatchcase(name, pattern):
            found |= given
    return found


def embedding(name: str) -> torch.Tensor:
    """What takes the place of an embedded prompt: (1, 8, d), pooled (1, d), its mask (1, 8)."""
    generator = torch.Generator().manual_seed(len(name))
    if "mask" in name:
        return torch.ones(1, WORDS, dtype=torch.long)
    shape = (1, WIDTH) if "pooled" in name else (1, WORDS, WIDTH)
    return torch.randn(shape, generator=generator)
