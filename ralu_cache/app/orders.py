"""What a visitor ordered: arguments of `accelerate` and of the call, and the Python lines that do the same."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ralu_cache.demo_plans import DEMOS
from ralu_cache.generate import Request, call_arguments, device_of, makes_videos
from ralu_cache.models.embedded import EMBEDDED

GUIDANCE_NAMES = ("true_cfg_scale", "guidance_scale")


@dataclass(frozen=True)
class Order:
    """A request, and the arguments of `accelerate` by name."""

    request: Request
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Height and width in pixels; None is the pipeline's own."""
        return self.request.height, self.request.width

    @property
    def full(self) -> str:
        """What the full run depends on: equal for orders that differ in their acceleration alone."""
        return repr(self.request)


def guidance_of(model: str, pipe: Any) -> tuple[str, float] | None:
    """The argument by which the pipeline is guided, and its default here; None if it has none.

    Of an embedded model that of its demo: guidance at which few plain steps break pictures.
    """
    if model in EMBEDDED:
        plan = next((plan.guidance for plan in DEMOS if plan.model.name == model and plan.guidance), None)
        known = plan or EMBEDDED[model].arguments
        return next(((name, float(known[name])) for name in GUIDANCE_NAMES if name in known), None)
    taken = inspect.signature(pipe.__call__).parameters
    # where the model's own guidance is None it was not distilled into it, and true guidance is the way (Qwen-Image)
    for name in reversed(GUIDANCE_NAMES):
        if name in taken and taken[name].default is not None:
            return name, float(taken[name].default)
    return None


def python_lines(order: Order, pipe: Any) -> str:
    """A script that draws the accelerated picture again, bit for bit on the same machine."""
    request = order.request
    call = call_arguments(request, pipe)
    del call["generator"], call["num_videos_per_prompt" if makes_videos(pipe) else "num_images_per_prompt"]
    call["prompt"], *_ = request.prompt
    if "negative_prompt" in call:
        call["negative_prompt"], *_ = call["negative_prompt"]
    names = sorted(call, key=lambda name: name != "prompt")  # it comes first
    lines = [f"    {name}={_literal(call[name])}," for name in names]
    parts = ", ".join(f"{name}={_literal(value)}" for name, value in order.parts.items())
    drawn = "frames[0]" if makes_videos(pipe) else "images[0]"
    return "\n".join([
        "import torch",
        *_loading(request),
        f"handle = accelerate(pipe, {parts})",
        "drawn = pipe(",
        *lines,
        f"    generator=torch.Generator().manual_seed({request.seed}),",
        f").{drawn}",
        "print(handle.report)",
    ])  # fmt: skip


def _loading(request: Request) -> list[str]:
    """Imports, and the pipeline on its device."""
    device = device_of(request)
    move = [] if device == "cpu" else [f"pipe.to({_literal(device)})"]
    if request.model in EMBEDDED:
        load = f"pipe = EMBEDDED[{_literal(request.model)}].load()"
        return ["from ralu_cache import accelerate", "from ralu_cache.models.embedded import EMBEDDED", "", load, *move]
    dtype = request.dtype or ("float32" if device == "cpu" else "bfloat16")
    load = f"pipe = DiffusionPipeline.from_pretrained({_literal(request.model)}, dtype=torch.{dtype})"
    return ["from diffusers import DiffusionPipeline", "from ralu_cache import accelerate", "", load, *move]


def _literal(value: Any) -> str:
    """As it is written in Python, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
