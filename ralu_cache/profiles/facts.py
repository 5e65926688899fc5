"""Which model it is, and what of a call decides how a setting does: both are told in every profile."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLOSE = 0.1  # guidance scales that differ by this share of themselves count as alike


@dataclass(frozen=True)
class Model:
    """A model by its architecture: the pipeline's class, the denoiser's, and a hash of the denoiser's configuration.

    Weights don't count: what was measured on a model serves its fine-tuned relatives, as far as anything does.
    """

    pipeline: str
    denoiser: str
    config: str

    @classmethod
    def of(cls, pipe: Any) -> Model:
        """Without a configuration, the denoiser's parameters and their shapes tell what it is."""
        denoiser = pipe.transformer
        config = getattr(denoiser, "config", None)
        if isinstance(config, Mapping):
            told = {name: value for name, value in config.items() if not name.startswith("_")}
        else:
            told = {name: list(parameter.shape) for name, parameter in denoiser.named_parameters()}
        text = json.dumps(told, sort_keys=True, default=str)
        return cls(type(pipe).__name__, type(denoiser).__name__, hashlib.sha256(text.encode()).hexdigest()[:16])

    @property
    def told(self) -> str:
        return f"{self.pipeline} with {self.denoiser} {self.config}"


@dataclass(frozen=True)
class Facts:
    """A call: steps asked for, pixels, frames of a video, and its two guidance scales; None where it has no such thing.

    true_cfg_scale: classifier-free where the pipeline has both; guidance_scale: then the distilled one.
    """

    steps: int
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None

    @classmethod
    def of(cls, pipe: Any, given: Mapping[str, Any], steps: int) -> Facts:
        """given: the call's arguments by name, with the defaults; a size left to the pipeline is asked of it."""
        size = getattr(pipe, "default_sample_size", None)
        scale = getattr(pipe, "vae_scale_factor", None)
        default = size * scale if isinstance(size, int) and isinstance(scale, int) else None
        scales = {name: _number(given.get(name)) for name in ("guidance_scale", "true_cfg_scale")}
        return cls(
            steps, given.get("height") or default, given.get("width") or default, given.get("num_frames"), **scales
        )

    def matches(self, other: Facts) -> bool:
        """True if what was measured in one of them holds in the other."""
        alike = (self.steps, self.height, self.width, self.frames)
        if alike != (other.steps, other.height, other.width, other.frames):
            return False
        return _close(self.guidance_scale, other.guidance_scale) and _close(self.true_cfg_scale, other.true_cfg_scale)

    def distance(self, other: Facts) -> float:
        """How unlike two calls are, to name the nearest: doublings of steps and pixels, and whatever else differs."""
        pairs = [(self.steps, other.steps), (self.height, other.height), (self.width, other.width)]
        far = sum(abs(math.log2(a / b)) if a and b else float(a != b) for a, b in pairs)
        scales = [(self.guidance_scale, other.guidance_scale), (self.true_cfg_scale, other.true_cfg_scale)]
        return far + sum(not _close(*pair) for pair in scales) + (self.frames != other.frames)

    @property
    def told(self) -> str:
        """As the arguments of a call."""
        sizes = {"height": self.height, "width": self.width, "num_frames": self.frames}
        names = {"num_inference_steps": self.steps} | sizes
        scales = {"guidance_scale": self.guidance_scale, "true_cfg_scale": self.true_cfg_scale}
        return ", ".join(f"{name}={value:g}" for name, value in (names | scales).items() if value is not None)

    @property
    def flags(self) -> str:
        """As options of `ralu-cache tune`."""
        names = {"steps": self.steps, "height": self.height, "width": self.width}
        scales = {"guidance-scale": self.guidance_scale, "true-cfg-scale": self.true_cfg_scale}
        return " ".join(f"--{name} {value:g}" for name, value in (names | scales).items() if value is not None)


def with_defaults(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with those that it leaves to the pipeline."""
    parameters = inspect.signature(pipe.__call__).parameters
    return {name: each.default for name, each in parameters.items() if each.default is not each.empty} | dict(call)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _close(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=CLOSE)
