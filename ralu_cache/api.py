"""accelerate(): install an acceleration on a stock pipeline, and undo it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from typing import Any

from torch import nn

from ralu_cache.adapters.probed import probed
from ralu_cache.adapters.protocols import Adapter
from ralu_cache.adapters.registry import matching_adapter, unserved
from ralu_cache.engine.anywhere import AnyAcceleration, check_pipeline
from ralu_cache.engine.disguise import stock_of
from ralu_cache.engine.experts import check_experts
from ralu_cache.engine.family import FamilyAcceleration
from ralu_cache.engine.handle import Acceleration
from ralu_cache.engine.parts import resolve_parts
from ralu_cache.engine.pipeline import handle_of, wear
from ralu_cache.engine.planned import Planned, Wish, planned
from ralu_cache.history.solvers import Multistep, resolve_solver
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.spatial import SpatialMethod
from ralu_cache.profiles.profile import Profile
from ralu_cache.temporal import Forecast, Temporal, resolve_each
from ralu_cache.temporal.experts import ByExpert, expert_settings

__all__ = ["Acceleration", "accelerate"]
CHOOSING = ("speedup", "max_loss", "profile")  # what chooses all others
FIXED = ("spatial", "temporal", "guidance", "solver")


def accelerate(
    pipe: Any,
    spatial: str | SpatialMethod | None = None,
    temporal: str | Temporal | ByExpert | None = None,
    speedup: str | float | None = None,
    guidance: str | Guidance | tuple[bool, ...] | None = None,
    solver: str | Multistep | None = None,
    max_loss: float | None = None,
    profile: str | PathLike[str] | Profile | None = None,
) -> Acceleration:
    """Make a stock diffusers pipeline faster in place; the call stays ``pipe(prompt, ...)``.

    spatial: None, "ralu" (the family's default plan: "ralu-8x", of videos "ralu-7x"), a preset's name (see
        `RALU.preset`), the name of a registered method, or a `RALU(...)`.
    temporal: None, "forecast" (at steps that aren't computed the model isn't called), "teacache", "seacache",
        "taylorseer", "toca", "adaptive", each with its main setting after a colon if wanted ("teacache:0.4"), the name
        of a registered policy, or a config such as `SeaCache(threshold=0.3)`. For a pipeline with a denoiser each for
        high and low noise levels (Wan 2.2), {"high": "seacache:0.3", "low": "taylorseer:3"}, either of which may be
        None; else both reuse alike, and neither what the other computed.
        Together with `spatial` the first step of every stage is computed, for nothing that was cached can stand for it,
        but each token goes on along the trend that it, or the one that it was split from, had before: at the same cost
        that was 0.6 to 1.6 dB closer to the uncached plan than forgetting (`benchmarks/results/composition`).
    guidance: in which steps classifier-free guidance is computed: None (as the plan says; most leave it to the call),
        "all" (as the call says), "early" (in the stages that aren't fine; without stages until t = 0.5), "early:0.65",
        a tuple of one bool a stage, or a `Guidance(...)`. In the other steps the pipeline's own formula is given the
        prediction with the prompt for both, so they cost half.
    solver: None or "euler" (the stock step), "multistep" (UniPC of order 2, "multistep:3" of order 3), "dpm" (order 2
        without UniPC's corrector) or a `Multistep(...)`. With stages it reads what was computed before a transition.
    speedup: instead of both, 4 or "4x": every call costs the denoiser at least that many times less than the same call
        in full. Where `ralu-cache tune` measured such calls on this model, by the best setting that was found, and if
        none is so fast, an error names the fastest. For other calls, and if guidance or solver are given too, by a plan
        of coarse and fine steps made for their size and `num_inference_steps`, judged by FLOPs, which is said once; a
        call for which that can't be is refused, with the most that can be had.
    max_loss: instead of all of these, the fastest setting measured on this model whose mean loss of quality surely (at
        95 %) is at most this much, in the profile's measure (0 is the full run). Calls that were not measured run in
        full, and say so.
    profile: the file of `ralu-cache tune` to ask for both, or a `Profile`; else the one beside the model, or in the
        user's cache folder. Given alone, it is its own choice that is taken.

    Returns the handle: `report`, `disable()`, and a context manager that disables on exit. A second call replaces the
    first, it never stacks. Raises TypeError for an unsupported pipeline or scheduler and ValueError for an unknown
    method or option; each names what was given and what is accepted.
    """
    settings: dict[str, Any] = {
        "spatial": spatial, "temporal": temporal, "speedup": speedup, "guidance": guidance, "solver": solver,
        "max_loss": max_loss, "profile": profile,
    }  # fmt: skip
    again = partial(accelerate, **settings)
    _check_together(settings)
    adapter, planner = matching_adapter(pipe) or _probed(pipe, settings), None
    if adapter is None:
        return _installed(pipe, _anywhere(pipe, settings, again))
    if any(settings[name] is not None for name in CHOOSING):
        planner = _planner(pipe, adapter, settings)
        parts = planner.base
    else:
        parts = resolve_parts(pipe, adapter, spatial, temporal, guidance, solver)
    return _installed(pipe, FamilyAcceleration(pipe, type(adapter), parts, again, planner))


def _installed(pipe: Any, handle: Acceleration) -> Acceleration:
    """The pipeline's handle is another one now."""
    previous = handle_of(pipe)
    wear(pipe, handle)
    if previous is not None:
        previous.disable()
    return handle


def _check_together(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that don't go together."""
    asked = {name: value for name, value in settings.items() if value is not None}
    chooses = next((name for name in CHOOSING if name in asked), None)
    if chooses is None:
        return
    free = ("guidance", "solver") if asked.keys().isdisjoint({"max_loss", "profile"}) else ()
    if clash := [name for name in FIXED if name in asked and name not in free]:
        told = " and ".join(f"{name}={asked[name]!r}" for name in clash)
        raise ValueError(f"{chooses}={asked[chooses]!r} chooses what is computed; leave out {told}")


def _planner(pipe: Any, adapter: Adapter, settings: Mapping[str, Any]) -> Planned:
    """What gives each call a setting of its own."""
    asked = {name: value for name, value in settings.items() if value is not None}
    fixed = not asked.keys().isdisjoint(FIXED)
    others = resolve_parts(pipe, adapter, guidance=asked.get("guidance"), solver=asked.get("solver")) if fixed else None
    wish = Wish.read(settings["speedup"], settings["max_loss"])
    return planned(pipe, adapter, wish, settings["profile"], others)


def _probed(pipe: Any, settings: Mapping[str, Any]) -> Adapter | None:
    """The adapter of a denoiser whose blocks are to be found; None where what is asked for needs no more than that."""
    policies = [policy for policy in resolve_each(settings["temporal"]) if policy is not None]
    others = [name for name in ("spatial", *CHOOSING, "guidance", "solver") if settings[name] is not None]
    if not policies or others or not all(map(_of_blocks, policies)):
        return None
    check_pipeline(pipe)
    transformer = getattr(pipe, "transformer", None)
    if not isinstance(transformer, nn.Module):
        return None
    return probed(stock_of(type(transformer)), type(pipe).__name__)(transformer)


def _of_blocks(policy: Temporal) -> bool:
    """True for a policy that needs no more than blocks which a probe finds."""
    if isinstance(policy, Forecast) or policy.caches != "stack" or getattr(policy, "reuse", None) == "prediction":
        return False
    return getattr(policy, "signal", None) != "plane"


def _anywhere(pipe: Any, settings: Mapping[str, Any], again: Callable[[Any], Acceleration]) -> Acceleration:
    """The handle of a pipeline that no adapter serves: forecasts and solvers work with any."""
    works = (
        "temporal='forecast:3' (two of three steps don't call the model), solver= on FlowMatchEulerDiscreteScheduler "
        "and, with a pipe.transformer that a probe finds blocks in, temporal='teacache', 'seacache' or 'taylorseer'"
    )
    for name in ("spatial", *CHOOSING, "guidance"):
        if settings[name] is not None:
            raise TypeError(unserved(pipe, f"{name}={settings[name]!r} needs an adapter; what works here: {works}"))
    asked = settings["temporal"]
    check_experts(pipe, None, expert_settings(asked))
    forecast = next((each for each in resolve_each(asked) if each is not None), None)
    if forecast is not None and not isinstance(forecast, Forecast):
        needs = "a pipe.transformer made of blocks" if _of_blocks(forecast) else "an adapter"
        raise TypeError(unserved(pipe, f"temporal={asked!r} needs {needs}; what works here: {works}"))
    if forecast is not None and forecast.tolerance is not None:
        raise ValueError(
            f"tolerance={forecast.tolerance} asks the model before it is skipped, which needs an adapter; what works "
            f"with {type(pipe).__name__}: {works}"
        )
    if forecast is not None:
        forecast.check_stages(1)
    label = "none" if asked is None else asked if isinstance(asked, str) else repr(asked)
    return AnyAcceleration(pipe, forecast, label, resolve_solver(settings["solver"]), again)
