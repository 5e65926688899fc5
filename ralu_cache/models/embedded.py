"""The models that come with the library: small, really trained on procedural scenes; a README.md lies beside each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class EmbeddedModel:
    """One of them. `arguments`: what its call needs beside prompt, negative prompt (""), size, steps and seed.

    A negative prompt does nothing to one whose guidance is distilled: tiny-flux-dev.

    size: pixels of a side unless the call says otherwise. frames_per_second: of a model of videos; None of pictures.
    What it can draw says the README.md in its `folder`.
    """

    name: str
    pipeline: str
    package: str
    arguments: Mapping[str, Any] = field(hash=False)
    size: int = 128
    frames_per_second: int | None = None

    @property
    def output(self) -> Literal["images", "frames"]:
        """What the pipeline's result calls what it drew."""
        return "images" if self.frames_per_second is None else "frames"

    @property
    def folder(self) -> Path:
        """Where it lies, as `from_pretrained` takes it."""
        return Path(str(files("ralu_cache") / self.package))

    def load(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pipeline, on the CPU."""
        import diffusers

        pipe = getattr(diffusers, self.pipeline).from_pretrained(str(self.folder), dtype=dtype)
        if self.output == "images":  # pipelines of videos have their size in the call
            pipe.default_sample_size = self.size // 4  # in latent pixels; FLUX's class assumes 128
        return pipe


TINY_FLUX = EmbeddedModel("tiny-flux", "FluxPipeline", "tiny_flux", {"true_cfg_scale": 3.0, "max_sequence_length": 16})
TINY_SD3 = EmbeddedModel(
    "tiny-sd3", "StableDiffusion3Pipeline", "tiny_sd3", {"guidance_scale": 3.0, "max_sequence_length": 16}
)
TINY_WAN = EmbeddedModel(
    "tiny-wan", "WanPipeline", "tiny_wan",
    {"guidance_scale": 3.0, "max_sequence_length": 16, "num_frames": 9, "height": 64, "width": 64},
    size=64, frames_per_second=8,
)  # fmt: skip
TINY_FLUX_DEV = EmbeddedModel(
    "tiny-flux-dev", "FluxPipeline", "tiny_flux_dev", {"guidance_scale": 3.0, "max_sequence_length": 16}
)
EMBEDDED = {model.name: model for model in (TINY_FLUX, TINY_SD3, TINY_WAN, TINY_FLUX_DEV)}
