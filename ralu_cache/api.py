"""accelerate(): install an acceleration on a stock pipeline, and undo it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ralu_cache.adapters.parts import need
from ralu_cache.adapters.probed import probed
from ralu_cache.adapters.protocols import Adapter
from ralu_cache.adapters.registry import matching_adapter, unserved
from ralu_cache.engine.anywhere import AnyAcceleration, check_pipeline
from ralu_cache.engine.disguise import stock_of
from ralu_cache.engine.handle import Acceleration, FamilyAcceleration
from ralu_cache.engine.pipeline import handle_of, wear
from ralu_cache.history.solvers import Multistep, resolve_solver
from ralu_cache.plane.budget import BASE, Budget, wanted_speedup
from ralu_cache.plane.guidance import Guidance, resolve_guidance
from ralu_cache.plane.spatial import SpatialMethod, resolve_spatial
from ralu_cache.temporal import Forecast, Policy, Temporal, resolve_temporal
from ralu_cache.temporal.coefficients import calibrated

__all__ = ["Acceleration", "accelerate"]


def accelerate(
    pipe: Any,
    spatial: str | SpatialMethod | None = None,
    temporal: str | Temporal | None = None,
    speedup: str | float | None = None,
    guidance: str | Guidance | tuple[bool, ...] | None = None,
    solver: str | Multistep | None = None,
) -> Acceleration:
    """Make a stock diffusers pipeline faster in place; the call stays ``pipe(prompt, ...)``.

    spatial: None, "ralu" (the family's default plan: "ralu-8x", of videos "ralu-4x"), a preset's name (see
        `RALU.preset`), the name of a registered method, or a `RALU(...)`.
    temporal: None, "forecast" (at steps that aren't computed the model isn't called), "teacache", "seacache",
        "taylorseer", "toca", "adaptive", each with its main setting after a colon if wanted ("teacache:0.4"), the name
        of a registered policy, or a config such as `SeaCache(threshold=0.3)`.
        Together with `spatial` the first step of every stage is computed, for nothing that was cached can stand for it,
        but each token goes on along the trend that it, or the one that it was split from, had before: at the same cost
        that was 0.6 to 1.6 dB closer to the uncached plan than forgetting (`benchmarks/results/composition`).
    guidance: in which steps classifier-free guidance is computed: None (as the plan says; most leave it to the call),
        "all" (as the call says), "early" (in the stages that aren't fine; without stages until t = 0.5), "early:0.65",
        a tuple of one bool a stage, or a `Guidance(...)`. In the other steps the pipeline's own formula is given the
        prediction with the prompt for both, so they cost half.
    solver: None or "euler" (the stock step), "multistep" (UniPC of order 2, "multistep:3" of order 3), "dpm" (order 2
        without UniPC's corrector) or a `Multistep(...)`. With stages it reads what was computed before a transition.
    speedup: instead of both, 4 or "4x": every call costs the denoiser at least that many times fewer FLOPs than the
        same call in full, by a plan of coarse and fine steps made for its size and `num_inference_steps`; a call for
        which that can't be is refused, with the most that can be had. Which plans draw well was measured on the
        embedded models alone, and is said so once.

    Returns the handle: `report`, `disable()`, and a context manager that disables on exit. A second call replaces the
    first, it never stacks. Raises TypeError for an unsupported pipeline or scheduler and ValueError for an unknown
    method or option; each names what was given and what is accepted.
    """
    if speedup is not None and (spatial is not None or temporal is not None):
        raise ValueError(f"speedup={speedup!r} chooses both; leave out spatial={spatial!r} and temporal={temporal!r}")
    settings: dict[str, Any] = {
        "spatial": spatial, "temporal": temporal, "speedup": speedup, "guidance": guidance, "solver": solver,
    }  # fmt: skip
    again = partial(accelerate, **settings)
    adapter = matching_adapter(pipe)
    family = type(adapter) if adapter is not None else _probed(pipe, settings)
    if family is None:
        return _installed(pipe, _anywhere(pipe, settings, again))
    budget = None if speedup is None else Budget(wanted_speedup(speedup))
    names = (family.default_preset if spatial == "ralu" else spatial if budget is None else budget, temporal)
    plan, label = ("none" if name is None else name if isinstance(name, str) else repr(name) for name in names)
    found = calibrated(resolve_temporal(temporal), label, pipe.transformer, family.family, plan)
    integrator = resolve_solver(solver)
    method = resolve_spatial(spatial, family.default_preset) if budget is None else BASE
    guided = resolve_guidance(guidance if guidance is not None else getattr(method, "guidance", None))
    _check_parts(family, method, found.policy, settings)
    handle = FamilyAcceleration(pipe, family, method, plan, found, again, guided, budget, integrator)
    return _installed(pipe, handle)


def _installed(pipe: Any, handle: Acceleration) -> Acceleration:
    """The pipeline's handle is another one now."""
    previous = handle_of(pipe)
    wear(pipe, handle)
    if previous is not None:
        previous.disable()
    return handle


def _probed(pipe: Any, settings: Mapping[str, Any]) -> type[Adapter] | None:
    """The adapter of a denoiser whose blocks are to be found; None where what is asked for needs no more than that."""
    policy = resolve_temporal(settings["temporal"])
    others = [name for name in ("spatial", "speedup", "guidance", "solver") if settings[name] is not None]
    if policy is None or isinstance(policy, Forecast) or policy.caches != "stack" or others:
        return None
    if getattr(policy, "reuse", None) == "prediction":
        return None
    check_pipeline(pipe)
    transformer = getattr(pipe, "transformer", None)
    if getattr(policy, "signal", None) == "plane" or not isinstance(transformer, nn.Module):
        return None
    return probed(stock_of(type(transformer)), type(pipe).__name__)


def _anywhere(pipe: Any, settings: Mapping[str, Any], again: Callable[[Any], Acceleration]) -> Acceleration:
    """The handle of a pipeline that no adapter serves: forecasts and solvers work with any."""
    works = (
        "temporal='forecast' (with its interval, 'forecast:3'), solver= on FlowMatchEulerDiscreteScheduler and, with a "
        "pipe.transformer that a probe finds blocks in, temporal='teacache', 'seacache' or 'taylorseer'"
    )
    for name in ("spatial", "speedup", "guidance"):
        if settings[name] is not None:
            raise TypeError(f"{unserved(pipe)}; {name}={settings[name]!r} needs an adapter; what works here: {works}")
    forecast = resolve_temporal(settings["temporal"])
    asked = settings["temporal"]
    if forecast is not None and not isinstance(forecast, Forecast):
        raise TypeError(f"{unserved(pipe)}; temporal={asked!r} needs an adapter; what works here: {works}")
    if forecast is not None and forecast.tolerance is not None:
        raise ValueError(
            f"tolerance={forecast.tolerance} asks the model before it is skipped, which needs an adapter; what works "
            f"with {type(pipe).__name__}: {works}"
        )
    if forecast is not None:
        forecast.check_stages(1)
    label = "none" if asked is None else asked if isinstance(asked, str) else repr(asked)
    return AnyAcceleration(pipe, forecast, label, resolve_solver(settings["solver"]), again)


def _check_parts(
    family: type[Adapter], method: SpatialMethod | None, policy: Policy | Forecast | None, settings: Mapping[str, Any]
) -> None:
    """Raises ValueError for what the family's adapter lacks a part for."""
    asked = "spatial" if settings["speedup"] is None else "speedup"
    if asked == "speedup":
        need(family, "cost", f"{asked}={settings[asked]!r}")
    if method is not None:
        need(family, "tokens", f"{asked}={settings[asked]!r}")
        if "text_attention" in method.scorer.needs:
            need(family, "text attention", f"regions={method.scorer.name!r}")
    if policy is not None and not isinstance(policy, Forecast):
        need(family, "blocks" if policy.caches == "stack" else "layers", f"temporal={settings['temporal']!r}")
