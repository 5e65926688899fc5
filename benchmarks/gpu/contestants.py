"""Who is timed at real size: plain steps, stock UniPC, diffusers' own cache, plans, forecasts, policies, and both.

A policy whose decisions depend on the content gets them from a recording (`benchmarks.forced`), because a model with
random weights has none; all others run as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from diffusers import TaylorSeerCacheConfig, UniPCMultistepScheduler

from benchmarks.forced import Forced
from benchmarks.gpu.models import Shape
from ralu_cache import Acceleration, SeaCache, TaylorSeer, TeaCache, accelerate
from ralu_cache.demo_plans import STACKED
from ralu_cache.sweep.methods import parse_method
from ralu_cache.temporal import Forecast, Policy, resolve_temporal

FULL_STEPS, PLAIN_STEPS = 50, 8
FULL, PLAIN = f"full, {FULL_STEPS} steps", f"{PLAIN_STEPS} steps"
FEWER = (12, 6, 4)  # steps, beside those: 4, 8 and 12 times fewer
LARGE = (FULL, "ralu-8x", "ralu-18x", "+forecast:6")  # where the full run takes a minute
PLANS = ("ralu-8x", "ralu-12x", "ralu-15x", "ralu-18x", "ralu-22x")  # ours; the published ones come with the shape
FORECASTS = ("+forecast:4", "+forecast:6", "+forecast:8", "+forecast:12")
COMPOSED = (
    STACKED, "ralu-4x+forecast:2", "ralu-8x+forecast:2", "ralu-12x+solver=multistep", "ralu-4x+taylorseer:5/2/2",
    "ralu-4x+adaptive:2", "ralu-4x+toca:4",
)  # fmt: skip
CACHED = ("+taylorseer:5", "+adaptive:3", "+adaptive:3,ratio=0.2", "+toca:4")
TAYLORSEER = "diffusers' TaylorSeer, every 5th"


@dataclass(frozen=True)
class Contestant:
    """A way to call the pipeline: stock steps, spatial method, temporal policy, guidance, solver.

    all_computed: reuse is impossible, so what it takes longer than as many plain steps is what caching costs.
    stock: instead of ours, "unipc" (the scheduler) or "taylorseer" (diffusers' own cache).
    """

    label: str
    steps: int
    spatial: str | None = None
    temporal: Policy | Forecast | None = None
    all_computed: bool = False
    guidance: str | None = None
    solver: str | None = None
    stock: str | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """For `accelerate`."""
        return {"spatial": self.spatial, "temporal": self.temporal, "guidance": self.guidance, "solver": self.solver}

    @property
    def decides(self) -> bool:
        """True if it decides by what it looks at on the device; policies that count steps do not."""
        return getattr(self.temporal, "signal", None) is not None

    @property
    def compiles(self) -> bool:
        """True if it goes with `compile_repeated_blocks`."""
        return self.stock is None and getattr(self.temporal, "caches", "stack") == "stack"

    @contextmanager
    def on(self, pipe: Any) -> Iterator[Acceleration | None]:
        """Within it the pipeline is called this way; gives the handle, whose report is there after a call of ours."""
        if self.stock is None:
            with accelerate(pipe, **self.parts) as handle:
                yield handle
            return
        scheduler = pipe.scheduler
        cached = _taylorseer(pipe) if self.stock == "taylorseer" else nullcontext()
        if self.stock == "unipc":
            pipe.scheduler = UniPCMultistepScheduler.from_config(
                scheduler.config, use_flow_sigmas=True, prediction_type="flow_prediction",
                flow_shift=scheduler.config.shift,
            )  # fmt: skip
        try:
            with cached:
                yield None
        finally:
            pipe.scheduler = scheduler


@contextmanager
def _taylorseer(pipe: Any) -> Iterator[None]:
    pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=5, max_order=1))
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


def contestants(shape: Shape, traces: Mapping[str, Sequence[bool]]) -> list[Contestant]:
    """The full run first: it is what the others are compared with. In the order of their worth."""
    found = [Contestant(FULL, FULL_STEPS), Contestant(PLAIN, PLAIN_STEPS)]
    found += [Contestant(name, FULL_STEPS, name) for name in (*shape.presets, *PLANS)]
    for method in dict.fromkeys((*FORECASTS, *COMPOSED, *CACHED, *traces)):
        parts = parse_method(method)
        policy = resolve_temporal(parts.temporal)
        if method in traces:
            assert policy is not None and not isinstance(policy, Forecast)
            policy = Forced(policy, tuple(traces[method]))
        found.append(Contestant(method, FULL_STEPS, parts.spatial, policy, False, parts.guidance, parts.solver))
    found += [Contestant(f"{steps} steps", steps) for steps in FEWER]
    found += [Contestant(f"stock UniPC, {steps} steps", steps, stock="unipc") for steps in (*FEWER, PLAIN_STEPS)]
    found.append(Contestant(TAYLORSEER, FULL_STEPS, stock="taylorseer"))
    nothing = {"teacache": TeaCache(0.0), "seacache": SeaCache(0.0), "taylorseer": TaylorSeer(max_age=0)}
    return found + [
        Contestant(f"{PLAIN}, {name}, all computed", PLAIN_STEPS, None, policy, True)
        for name, policy in nothing.items()
    ]


def quick(everyone: Sequence[Contestant]) -> list[Contestant]:
    """Plain steps, plans and forecasts, for parts that cannot take long."""
    return [c for c in everyone if c.stock is None and not hasattr(c.temporal, "caches")]
