"""Metrics with downloaded weights: CLIP score, ImageReward, LPIPS. Nothing here downloads; what is missing is named."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from ralu_cache.quality.base import Likeness, MetricInfo, Pictures, Reading, check_pictures

CLIP = "openai/clip-vit-large-patch14"
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGE_REWARD_FILES = ("ImageReward.pt", "med_config.json")
_BERT = "bert-base-uncased"  # ImageReward takes its tokenizer from the hub
_ALEXNET = "alexnet-owt-7be5be79.pth"


class MissingError(Exception):
    """A package or weights that a metric needs are not on this machine."""


def load_clip(device: str, checkpoint: str = CLIP) -> Reading:
    """100 times the cosine between picture and prompt in CLIP's space, at least 0 (Hessel et al. 2021, w = 1).

    checkpoint: a folder, or a hub name in the local cache. Raises MissingError if its files are not there.
    """
    from transformers import CLIPModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(checkpoint, local_files_only=True)
        model: Any = CLIPModel.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingError(f"the weights of {checkpoint} are not in the local cache") from error
    model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def score(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
        words = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        pixels = clip_pixels(pictures, model.config.vision_config.image_size).to(device)
        output = model(pixel_values=pixels, **words)
        cosine = F.cosine_similarity(output.image_embeds, output.text_embeds)
        values: list[float] = (100 * cosine).clamp_min(0).tolist()
        return values

    return Reading("clip_score", MetricInfo("CLIP score"), score)


def clip_pixels(pictures: Pictures, size: int) -> torch.Tensor:
    """CLIP's preparation, (B, Y, X, 3) in [0, 1] -> (B, 3, size, size): shorter side to `size` by bicubic resampling,
    centre crop, its mean and deviation."""
    images = torch.from_numpy(check_pictures(pictures)).permute(0, 3, 1, 2)
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    shape = (round(height * scale), round(width * scale))
    images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (_CLIP_MEAN, _CLIP_STD))
    return (images[..., top : top + size, left : left + size] - mean) / std


def load_image_reward(device: str) -> Reading:
    """The learnt human preference of Xu et al. 2023 (package `image-reward`), about -2 to 2.

    Raises MissingError if the package, or its files in ~/.cache/ImageReward, are missing.
    """
    package = _package("ImageReward", "image-reward")
    folder = Path.home() / ".cache" / "ImageReward"
    _need(folder / name for name in _IMAGE_REWARD_FILES)
    if not isinstance(try_to_load_from_cache(_BERT, "vocab.txt"), str):
        raise MissingError(f"its tokenizer {_BERT} is not in the local cache")
    model = package.load("ImageReward-v1.0", device=device, download_root=str(folder))

    @torch.no_grad()
    def score(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
        shown = (check_pictures(pictures).clip(0, 1) * 255).round().astype("uint8")
        images = [Image.fromarray(picture) for picture in shown]
        return [float(model.score(prompt, image)) for prompt, image in zip(prompts, images, strict=True)]

    return Reading("image_reward", MetricInfo("ImageReward"), score)


def load_lpips(device: str) -> Likeness:
    """The perceptual distance of Zhang et al. 2018 on AlexNet (package `lpips`); 0 for equal pictures.

    Raises MissingError if the package, or AlexNet in torch's hub folder, is missing.
    """
    package = _package("lpips", "lpips")
    _need([Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET])
    model = package.LPIPS(net="alex", verbose=False).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def distance(pictures: Pictures, references: Pictures) -> list[float]:
        both = (torch.from_numpy(images).permute(0, 3, 1, 2).to(device) * 2 - 1 for images in (pictures, references))
        values: list[float] = model(*both).flatten().tolist()
        return values

    return Likeness("lpips", MetricInfo("LPIPS", higher=False), distance)


def _package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except (AttributeError, ImportError, RuntimeError) as error:  # as versions that do not fit each other raise them
        raise MissingError(f"the package {distribution} cannot be imported ({error})") from error


def _need(paths: Iterable[Path]) -> None:
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise MissingError(f"its weights are not there: {', '.join(absent)}")
