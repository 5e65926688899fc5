"""`ralu-cache generate`: load any checkpoint, accelerate it, draw, save pictures and report."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ralu_cache.api import accelerate
from ralu_cache.demo import TINY_FLUX, load_tiny_flux
from ralu_cache.methods import Method, parse_method

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Request:
    """What to draw and how; None leaves a choice to the pipeline. Sizes are in pixels."""

    model: str
    prompt: list[str]
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    guidance_scale: float | None = None
    spatial: str = "ralu"
    temporal: str = "none"
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    seed: int = 0
    num_images: int = 1
    max_sequence_length: int | None = None
    dtype: str | None = None
    device: str | None = None
    offload: str = "none"
    out: str = "out/generate"
    report: str | None = None
    plot: str | None = None

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num-images must be at least 1, got {self.num_images}")
        if (self.report or self.plot) and self.method == Method(None, None):
            raise ValueError("--report and --plot need an acceleration, but --spatial and --temporal are none")

    @property
    def method(self) -> Method:
        """Both parts, read as the demo reads them."""
        return parse_method(f"{self.spatial}+{self.temporal}")


def generate(request: Request) -> list[Path]:
    """Draws, saves and prints what was done. Returns the paths of the pictures."""
    if request.plot:  # a missing matplotlib should not cost a run
        from ralu_cache import plots  # noqa: F401
    pipe = load(request)
    with accelerate(pipe, request.method.spatial, request.method.temporal) as handle:
        images = pipe(**call_arguments(request, pipe)).images
    paths = picture_paths(request.out, len(images))
    for image, path in zip(images, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        print(path)
    if handle.report is not None:
        print(handle.report)
        if request.report:
            handle.report.save(request.report)
        if request.plot:
            handle.report.plot(request.plot, images)
    return paths


def device_of(request: Request) -> str:
    """The device asked for, else cuda if there is one, else cpu."""
    return request.device or ("cuda" if torch.cuda.is_available() else "cpu")


def load(request: Request) -> Any:
    """The pipeline, on its device, in its type."""
    device = device_of(request)
    dtype = getattr(torch, request.dtype or ("float32" if device == "cpu" else "bfloat16"))
    if request.model == TINY_FLUX.name:
        pipe = load_tiny_flux(dtype)
    else:
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(request.model, dtype=dtype)
    if request.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif request.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def call_arguments(request: Request, pipe: Any) -> dict[str, Any]:
    """The arguments of the pipeline's call. Raises ValueError for an option that this pipeline does not take."""
    chosen: dict[str, Any] = {
        "negative_prompt": request.negative_prompt,
        "true_cfg_scale": request.true_cfg_scale,
        "guidance_scale": request.guidance_scale,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.steps,
        "max_sequence_length": request.max_sequence_length,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    if request.model == TINY_FLUX.name:
        given = {**TINY_FLUX.arguments, "negative_prompt": "", **given}
    accepted = inspect.signature(pipe.__call__).parameters
    if "num_frames" in accepted:
        raise ValueError(f"{type(pipe).__name__} makes videos, not pictures; call accelerate() on it in Python")
    if unknown := [name for name in given if name not in accepted]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
        raise ValueError(f"{type(pipe).__name__} takes no {flags}")
    if "negative_prompt" in given:
        given["negative_prompt"] = [given["negative_prompt"]] * len(request.prompt)
    count = len(request.prompt) * request.num_images
    generators = [torch.Generator().manual_seed(request.seed + index) for index in range(count)]
    return {**given, "prompt": request.prompt, "num_images_per_prompt": request.num_images, "generator": generators}


def picture_paths(out: str, count: int) -> list[Path]:
    """A folder gets 0.png, 1.png, ...; a picture's name is used as it is, or numbered if there are several."""
    target = Path(out)
    if target.suffix.lower() not in PICTURES:
        return [target / f"{index}.png" for index in range(count)]
    if count == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{index}{target.suffix}") for index in range(count)]
