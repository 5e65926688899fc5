"""One way to draw: plain steps of a stock sampler, or a plan of ours, at a guidance scale; and what it costs.

The transformer computes in bfloat16, as released models do, with its blocks compiled; sampler and latents are float32.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from ralu_cache import RALU, Guidance, accelerate
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.plane.spatial import resolve_spatial
from ralu_cache.quality.base import Pictures
from ralu_cache.temporal import resolve_temporal

FULL_STEPS = 50
SOLVERS = ("euler", "unipc", "dpm++2m")


@dataclass(frozen=True)
class Setting:
    """steps: of the call. shift: of the schedule of plain steps; None is the model's own, and its own spacing.

    Without spatial, temporal and guidance the pipeline is stock. peer: another's cache, as `benchmarks.regime.peers`
    names it. Raises ValueError for an unknown solver, and for one
    that our methods, which need flow-match Euler, do not go with.
    """

    name: str
    scale: float
    steps: int = FULL_STEPS
    shift: float | None = None
    solver: str = "euler"
    spatial: str | RALU | None = None
    temporal: str | None = None
    guidance: str | Guidance | None = None
    peer: str | None = field(default=None, repr=False)  # the digits of the others stay what they were

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; accepted: {', '.join(SOLVERS)}")
        if self.solver != "euler" and self.ours:
            raise ValueError(f"{self.solver} is for stock runs; our methods need flow-match Euler")

    @property
    def ours(self) -> bool:
        return (self.spatial, self.temporal, self.guidance) != (None, None, None)

    @property
    def compiles(self) -> bool:
        """False where it reaches into the layers of blocks, or where each number of pictures would be compiled anew,
        since it decides picture by picture: the clock is unfair to it."""
        policy = resolve_temporal(self.temporal)
        return getattr(policy, "caches", "stack") == "stack" and getattr(policy, "signal", None) is None

    @property
    def made(self) -> str:
        """Eight digits that tell this setting, and what its names stand for today, from others."""
        method = None if self.spatial in (None, "ralu") else resolve_spatial(self.spatial, "ralu-4x")
        text = repr((self, method, getattr(method, "guidance", None))) + (self.peer or "")
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures (B, Y, X, 3), or videos (B, F, Y, X, 3), in [0, 1]. ratio: how many times fewer FLOPs than 50 guided
    steps. seconds: by the clock; processor: those that the process itself computed, whatever ran beside it."""

    pictures: Pictures
    ratio: float
    seconds: float
    processor: float


class Draw(Protocol):
    def __call__(self, model: str, setting: Setting, prompts: Sequence[str], seeds: Sequence[int]) -> Drawn: ...


def load(model: str) -> Any:
    """The shipped pipeline; its transformer computes in bfloat16, and takes and gives float32."""
    pipe = EMBEDDED[model].load()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.to(torch.bfloat16)
    pipe.transformer.register_forward_pre_hook(_halved, with_kwargs=True)
    pipe.transformer.register_forward_hook(lambda module, arguments, output: (output[0].float(), *output[1:]))
    return pipe


@cache
def pipeline(model: str) -> Any:
    """The pipeline of this study alone, with its blocks compiled."""
    pipe = load(model)
    torch._dynamo.config.recompile_limit = 1024  # stages, halves of guided calls, pictures that a cache computes: a
    torch._dynamo.config.accumulated_recompile_limit = 1024  # shape each, and after the last one it would fail
    for block in (*pipe.transformer.transformer_blocks, *getattr(pipe.transformer, "single_transformer_blocks", ())):
        block.compile(fullgraph=True, dynamic=False)
    return pipe


@cache
def plain_pipeline(model: str) -> Any:
    """One whose blocks are not compiled, for caches that hook them or their layers."""
    return load(model)


def _halved(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All but levels, one a picture, and positions, three a token, in bfloat16."""

    def half(value: Any) -> Any:
        wide = isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1
        return value.to(torch.bfloat16) if wide and value.shape[-1] != 3 else value

    return tuple(map(half, given)), {name: half(value) for name, value in named.items()}


class _WithoutMu(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """Stock but for `mu`, which FLUX's pipeline hands on whatever the scheduler; the stock one takes it only to change
    its frozen configuration, which raises."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, mu: float | None = None) -> None:
        super().set_timesteps(num_inference_steps, device)


def scheduler_of(stock: Any, setting: Setting) -> Any:
    """The sampler of a setting, at its shift; the pipeline's own where none is given."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": setting.shift or 1.0}
    if setting.solver == "unipc":
        return UniPCMultistepScheduler(**flow)
    if setting.solver == "dpm++2m":
        return _WithoutMu(**flow, solver_order=2)
    if setting.shift is None:
        return stock
    return FlowMatchEulerDiscreteScheduler.from_config(stock.config, shift=setting.shift, use_dynamic_shifting=False)


@contextmanager
def _sampler(pipe: Any, setting: Setting) -> Iterator[None]:
    stock = pipe.scheduler
    pipe.scheduler = scheduler_of(stock, setting)
    try:
        yield
    finally:
        pipe.scheduler = stock


def arguments(model: str, setting: Setting) -> dict[str, Any]:
    """What the pipeline's call needs beside prompts and seeds.

    Plain Euler steps at a shift of their own stand at even distances down to 1/n, as FLUX's pipeline has them; SD3's
    would spend the last one on a level of all but 0, as Wan's does, which takes none.
    """
    embedded = EMBEDDED[model]
    scale = next(name for name in embedded.arguments if name.endswith("_scale"))
    given = {**embedded.arguments, scale: setting.scale, "height": embedded.size, "width": embedded.size}
    if setting.solver == "euler" and setting.shift is not None and _takes_sigmas(embedded.pipeline):
        given["sigmas"] = np.linspace(1.0, 1 / setting.steps, setting.steps).tolist()
    return given | {"num_inference_steps": setting.steps, "output_type": "np"}


def _takes_sigmas(pipeline: str) -> bool:
    return "sigmas" in inspect.signature(getattr(diffusers, pipeline).__call__).parameters


def draw(model: str, setting: Setting, prompts: Sequence[str], seeds: Sequence[int], other: Any = None) -> Drawn:
    """A picture or video for each prompt, from its seed's noise, and the cost. other: a pipeline to draw with."""
    if setting.peer is not None:
        return _drawn_by_peer(model, setting, prompts, seeds, other)
    pipe = other or (pipeline if setting.compiles else plain_pipeline)(model)
    given, output = arguments(model, setting) | _asked(prompts, seeds), EMBEDDED[model].output
    ratio = FULL_STEPS / setting.steps
    with _sampler(pipe, setting):
        begun, computed = time.perf_counter(), time.process_time()
        if setting.ours:
            options = {name: getattr(setting, name) for name in ("spatial", "temporal", "guidance")}
            with accelerate(pipe, **options) as handle:
                pictures: Pictures = getattr(pipe(**given), output)
            assert handle.report is not None
            ratio *= handle.report.baseline_flops / handle.report.flops
        else:
            pictures = getattr(pipe(**given), output)
        return Drawn(pictures, ratio, time.perf_counter() - begun, time.process_time() - computed)


def _asked(prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": list(prompts), "negative_prompt": [""] * len(prompts),
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
    }  # fmt: skip


@cache
def step_flops(model: str, scale: float, batch: int) -> float:
    """Of a denoiser's guided step on so many pictures in full, by PyTorch's count."""
    from benchmarks.counted import Counted

    pipe, setting = plain_pipeline(model), Setting("one step", scale, steps=1)
    with Counted(pipe.transformer) as counted:
        pipe(**arguments(model, setting) | _asked([""] * batch, range(batch)))
    return counted.flops


def _drawn_by_peer(model: str, setting: Setting, prompts: Sequence[str], seeds: Sequence[int], other: Any) -> Drawn:
    """As `draw`, by a peer's cache on blocks that are not compiled; FLOPs as counted against a full call's."""
    from benchmarks.counted import Counted
    from benchmarks.regime.peers import fresh_for, peer

    assert setting.peer is not None
    step = step_flops(model, setting.scale, len(prompts))  # before the cache is on
    pipe, call = other, arguments(model, setting)
    if pipe is None:
        pipe = load(model) if fresh_for(setting.peer) else plain_pipeline(model)
    with (
        _sampler(pipe, setting), peer(pipe, setting.peer, setting.steps, call), Counted(pipe.transformer) as counted
    ):  # fmt: skip
        begun, computed = time.perf_counter(), time.process_time()
        pictures: Pictures = getattr(pipe(**call, **_asked(prompts, seeds)), EMBEDDED[model].output)
        spent = time.perf_counter() - begun, time.process_time() - computed
    return Drawn(pictures, FULL_STEPS * step / counted.flops, *spent)
