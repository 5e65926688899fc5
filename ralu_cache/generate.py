"""`ralu-cache generate`: load any checkpoint, accelerate it, draw, save pictures or videos, and report."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ralu_cache.api import accelerate
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.report.videos import latent_frames, save_gif, tall, to_images
from ralu_cache.sweep.methods import GUIDANCE, SOLVER, Method, parse_method

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".gif",)
UNWRITTEN = (".apng", ".avi", ".bmp", ".mkv", ".mov", ".mp4", ".tif", ".tiff", ".webm")  # no folder is called so
FRAMES_PER_SECOND = 16  # of Wan 2.1


@dataclass(frozen=True)
class Request:
    """What to draw and how; None leaves a choice to the pipeline. Sizes are in pixels.

    num_frames is for pipelines of videos, as is frames_per_second: how fast their GIFs run.
    """

    model: str
    prompt: list[str]
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    guidance_scale: float | None = None
    spatial: str | None = None
    temporal: str = "none"
    guidance: str = "none"
    solver: str = "none"
    speedup: str | None = None
    max_loss: float | None = None
    profile: str | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    seed: int = 0
    num_images: int = 1
    num_frames: int | None = None
    frames_per_second: int | None = None
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
        if (self.report or self.plot) and not self.acceleration:
            raise ValueError(
                "--report and --plot need an acceleration, but --spatial, --temporal, --solver and --guidance are none"
            )

    @property
    def method(self) -> Method:
        """All parts, read as the demo reads them; "ralu" where nothing says what is computed."""
        spatial = self.spatial or ("none" if self._chosen else "ralu")
        return parse_method(f"{spatial}+{self.temporal}+{SOLVER}{self.solver}+{GUIDANCE}{self.guidance}")

    @property
    def acceleration(self) -> dict[str, Any]:
        """What `accelerate` is given."""
        return self.method.parts | self._chosen

    @property
    def _chosen(self) -> dict[str, Any]:
        """What chooses the parts by measurements."""
        asked = {"speedup": self.speedup, "max_loss": self.max_loss, "profile": self.profile}
        return {name: value for name, value in asked.items() if value is not None}


def generate(request: Request) -> list[Path]:
    """Draws, saves and prints what was done. Returns the paths of the pictures, or of the videos' GIFs."""
    pipe = load(request)
    arguments, videos = call_arguments(request, pipe), makes_videos(pipe)
    paths = output_paths(request.out, len(arguments["generator"]), VIDEOS if videos else PICTURES)
    with accelerate(pipe, **request.acceleration) as handle:
        drawn = pipe(**arguments, output_type="np" if videos else "pil")
    images = drawn.frames if videos else drawn.images
    for image, path in zip(images, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if videos:
            save_gif(to_images(image), path, frames_per_second(request))
        else:
            image.save(path)
        print(path)
    if handle.report is not None:
        print(handle.report)
        if request.report:
            handle.report.save(request.report)
        if request.plot:
            if videos:
                images = [tall(video, latent_frames(handle.report.size, video)) for video in images]
            handle.report.plot(request.plot, images)
    return paths


def makes_videos(pipe: Any) -> bool:
    """Whether the pipeline draws frames: its call takes their number."""
    return "num_frames" in inspect.signature(pipe.__call__).parameters


def frames_per_second(request: Request) -> int:
    """What was asked for, else what the embedded model is made for, else Wan's."""
    own = EMBEDDED[request.model].frames_per_second if request.model in EMBEDDED else None
    return request.frames_per_second or own or FRAMES_PER_SECOND


def device_of(request: Request) -> str:
    """The device asked for, else cuda if there is one, else cpu."""
    return request.device or ("cuda" if torch.cuda.is_available() else "cpu")


def load(request: Request) -> Any:
    """The pipeline, on its device, in its type."""
    device = device_of(request)
    dtype = getattr(torch, request.dtype or ("float32" if device == "cpu" else "bfloat16"))
    if request.model in EMBEDDED:
        pipe = EMBEDDED[request.model].load(dtype)
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
        "num_frames": request.num_frames,
        "max_sequence_length": request.max_sequence_length,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    if request.model in EMBEDDED:
        given = {**EMBEDDED[request.model].arguments, "negative_prompt": "", **given}
    accepted = inspect.signature(pipe.__call__).parameters
    unknown = [name for name in given if name not in accepted]
    if request.frames_per_second and not makes_videos(pipe):
        unknown.append("frames_per_second")
    if unknown:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
        raise ValueError(f"{type(pipe).__name__} takes no {flags}")
    if "negative_prompt" in given:
        given["negative_prompt"] = [given["negative_prompt"]] * len(request.prompt)
    count = len(request.prompt) * request.num_images
    generators = [torch.Generator().manual_seed(request.seed + index) for index in range(count)]
    each = "num_videos_per_prompt" if makes_videos(pipe) else "num_images_per_prompt"
    return {**given, "prompt": request.prompt, each: request.num_images, "generator": generators}


def output_paths(out: str, count: int, accepted: tuple[str, ...]) -> list[Path]:
    """A folder gets 0.png, 1.png, ... (the first of the accepted endings); a file's name is used, numbered if there are
    several. Raises ValueError for a file's name with another ending than the accepted ones."""
    target = Path(out)
    suffix = target.suffix.lower()
    if suffix not in accepted:
        if suffix in (*PICTURES, *VIDEOS, *UNWRITTEN):
            what = "videos" if accepted == VIDEOS else "pictures"
            raise ValueError(f"--out {out} ends in {suffix}, but {what} end in {', '.join(accepted)}; or name a folder")
        return [target / f"{index}{accepted[0]}" for index in range(count)]
    if count == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{index}{target.suffix}") for index in range(count)]
