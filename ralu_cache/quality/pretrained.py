"""Metrics with downloaded weights: CLIP score, ImageReward, LPIPS. Nothing here downloads; what is missing is named."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache

from ralu_cache.quality.base import MetricInfo, Pictures, check_pairs, check_pictures

CLIP = "openai/clip-vit-large-patch14"
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGE_REWARD_FILES = ("ImageReward.pt", "med_config.json")
_BERT = "bert-base-uncased"  # ImageReward takes its tokenizer from the hub
_ALEXNET = "alexnet-owt-7be5be79.pth"


class MissingError(Exception):
    """A package or weights that a metric needs are not on this machine."""


@dataclass(frozen=True)
class ClipScore:
    """100 times the cosine between picture and prompt in CLIP's space, at least 0 (Hessel et al. 2021, w = 1)."""

    model: Any
    tokenizer: Any
    device: str
    name: ClassVar = "clip_score"
    info: ClassVar = MetricInfo("CLIP score")
    reference: ClassVar = False

    @classmethod
    def load(cls, device: str, checkpoint: str = CLIP) -> ClipScore:
        """checkpoint: a folder, or a hub name in the local cache. Raises MissingError if its files are not there."""
        from transformers import CLIPModel, CLIPTokenizer

        try:
            tokenizer = CLIPTokenizer.from_pretrained(checkpoint, local_files_only=True)
            model = CLIPModel.from_pretrained(checkpoint, local_files_only=True)
        except (OSError, ValueError) as error:
            raise MissingError(f"the weights of {checkpoint} are not in the local cache") from error
        return cls(model.to(device).eval().requires_grad_(False), tokenizer, device)

    @torch.no_grad()
    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        words = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        output = self.model(pixel_values=self._pixels(pictures), **words)
        cosine = F.cosine_similarity(output.image_embeds, output.text_embeds)
        values: list[float] = (100 * cosine).clamp_min(0).tolist()
        return values

    def _pixels(self, pictures: Pictures) -> torch.Tensor:
        """CLIP's preparation: shorter side to its size by bicubic resampling, centre crop, its mean and deviation."""
        size: int = self.model.config.vision_config.image_size
        images = torch.from_numpy(check_pictures(pictures)).permute(0, 3, 1, 2).to(self.device)
        height, width = images.shape[-2:]
        scale = size / min(height, width)
        shape = (round(height * scale), round(width * scale))
        images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (_CLIP_MEAN, _CLIP_STD))
        return (images[..., top : top + size, left : left + size] - mean) / std


@dataclass(frozen=True)
class ImageReward:
    """The learnt human preference of Xu et al. 2023 (package `image-reward`), about -2 to 2."""

    model: Any
    name: ClassVar = "image_reward"
    info: ClassVar = MetricInfo("ImageReward")
    reference: ClassVar = False

    @classmethod
    def load(cls, device: str) -> ImageReward:
        """Raises MissingError if the package, or its files in ~/.cache/ImageReward, are missing."""
        package = _package("ImageReward", "image-reward")
        folder = Path.home() / ".cache" / "ImageReward"
        _need(folder / name for name in _IMAGE_REWARD_FILES)
        if not isinstance(try_to_load_from_cache(_BERT, "vocab.txt"), str):
            raise MissingError(f"its tokenizer {_BERT} is not in the local cache")
        return cls(package.load("ImageReward-v1.0", device=device, download_root=str(folder)))

    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        from PIL import Image

        shown = (check_pictures(pictures).clip(0, 1) * 255).round().astype("uint8")
        with torch.no_grad():
            return [
                float(self.model.score(prompt, Image.fromarray(picture)))
                for prompt, picture in zip(prompts, shown, strict=True)
            ]


@dataclass(frozen=True)
class Lpips:
    """The perceptual distance of Zhang et al. 2018 on AlexNet (package `lpips`); 0 for equal pictures."""

    model: Any
    device: str
    name: ClassVar = "lpips"
    info: ClassVar = MetricInfo("LPIPS", higher=False)
    reference: ClassVar = True

    @classmethod
    def load(cls, device: str) -> Lpips:
        """Raises MissingError if the package, or AlexNet in torch's hub folder, is missing."""
        package = _package("lpips", "lpips")
        _need([Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET])
        return cls(package.LPIPS(net="alex", verbose=False).to(device).eval().requires_grad_(False), device)

    @torch.no_grad()
    def __call__(self, pictures: Pictures, references: Pictures | None, prompts: Sequence[str]) -> list[float]:
        shown, wanted = (
            torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device) * 2 - 1
            for images in check_pairs(pictures, references)
        )
        values: list[float] = self.model(shown, wanted).flatten().tolist()
        return values


def _package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except (AttributeError, ImportError, RuntimeError) as error:  # as versions that do not fit each other raise them
        raise MissingError(f"the package {distribution} cannot be imported ({error})") from error


def _need(paths: Iterable[Path]) -> None:
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise MissingError(f"its weights are not there: {', '.join(absent)}")
