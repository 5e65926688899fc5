"""Temporal policies by name: `teacache`, `seacache`, `taylorseer`, and those that others register."""

from __future__ import annotations

from collections.abc import Callable

from ralu_cache.temporal.base import Decision, Policy, PolicyState, Situation, extrapolate
from ralu_cache.temporal.seacache import SeaCache
from ralu_cache.temporal.taylorseer import TaylorSeer
from ralu_cache.temporal.teacache import TeaCache

__all__ = [
    "Decision", "Policy", "PolicyState", "SeaCache", "Situation", "TaylorSeer", "TeaCache", "extrapolate",
    "register_temporal", "resolve_temporal", "temporal_names",
]  # fmt: skip

Factory = Callable[..., Policy]
_POLICIES: dict[str, Factory] = {"teacache": TeaCache, "seacache": SeaCache, "taylorseer": TaylorSeer}


def register_temporal(name: str, factory: Factory) -> None:
    """Make `accelerate(pipe, temporal=name)` use `factory()`, and "name:0.4" `factory(0.4)`.

    Raises ValueError if the name is empty, taken, or holds a colon.
    """
    if not name or ":" in name:
        raise ValueError(f"a temporal policy needs a name without a colon, got {name!r}")
    if name in _POLICIES:
        raise ValueError(f"temporal policy {name!r} is registered already")
    _POLICIES[name] = factory


def temporal_names() -> tuple[str, ...]:
    return tuple(_POLICIES)


def resolve_temporal(spec: str | Policy | None) -> Policy | None:
    """None, a name, "name:number" (sets the policy's first parameter) or a config object -> the config.

    Raises ValueError for an unknown name or a number that the policy does not accept, TypeError for anything else.
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        name, colon, knob = spec.partition(":")
        if name not in _POLICIES:
            raise ValueError(
                f"unknown temporal policy {spec!r}; accepted: None, {', '.join(temporal_names())}, a name with its "
                "main value such as 'teacache:0.4', or a config object such as TeaCache(threshold=0.4)"
            )
        return _POLICIES[name](_number(spec, knob)) if colon else _POLICIES[name]()
    if isinstance(spec, type) or not isinstance(spec, Policy):
        raise TypeError(f"temporal must be None, a name or a config such as TeaCache(), got {spec!r}")
    return spec


def _number(spec: str, knob: str) -> float:
    for kind in (int, float):
        try:
            return kind(knob)
        except ValueError:
            continue
    raise ValueError(f"temporal={spec!r}: {knob!r} is not a number")
