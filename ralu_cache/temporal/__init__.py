"""Temporal policies by name: forecast, teacache, seacache, taylorseer, toca, adaptive, and those that others register.

One policy a file: when to compute, and what stands in where nothing is. Pure: imports `plane` and `history` alone, and
never diffusers, transformers or matplotlib.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ralu_cache.history.residuals import extrapolate
from ralu_cache.temporal.adaptive import Adaptive
from ralu_cache.temporal.experts import ByExpert, expert_settings
from ralu_cache.temporal.policy import Decision, Policy, PolicyState, Situation
from ralu_cache.temporal.prediction import Forecast
from ralu_cache.temporal.seacache import SeaCache
from ralu_cache.temporal.taylorseer import TaylorSeer
from ralu_cache.temporal.teacache import TeaCache
from ralu_cache.temporal.toca import ToCa

__all__ = [
    "Adaptive",
    "Decision",
    "Forecast",
    "Policy",
    "PolicyState",
    "SeaCache",
    "Situation",
    "TaylorSeer",
    "TeaCache",
    "Temporal",
    "ToCa",
    "extrapolate",
    "register_temporal",
    "resolve_each",
    "resolve_temporal",
    "temporal_names",
]  # fmt: skip

Temporal = Policy | Forecast
Factory = Callable[..., Temporal]
_POLICIES: dict[str, Factory] = {
    "forecast": Forecast, "teacache": TeaCache, "seacache": SeaCache, "taylorseer": TaylorSeer, "toca": ToCa,
    "adaptive": Adaptive,
}  # fmt: skip


def register_temporal(name: str, factory: Factory) -> None:
    """Make `accelerate(pipe, temporal=name)` use `factory()`, and "name:0.4,order=1" `factory(0.4, order=1)`.

    Raises ValueError if the name is empty, taken, or holds a colon.
    """
    if not name or ":" in name:
        raise ValueError(f"a temporal policy needs a name without a colon, got {name!r}")
    if name in _POLICIES:
        raise ValueError(f"temporal policy {name!r} is registered already")
    _POLICIES[name] = factory


def temporal_names() -> tuple[str, ...]:
    return tuple(_POLICIES)


def resolve_temporal(spec: str | Temporal | None) -> Temporal | None:
    """None, a name, a name with settings or a config object -> the config.

    Settings follow a colon: the policy's first parameter, then options by name: "teacache:0.4",
    "seacache:0.7/0.5/0.4,order=0" (slashes between the values of the stages), "forecast:3,quantity=clean". Raises
    ValueError for an unknown name or option or a value that the policy does not accept, TypeError for anything else.
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        name, colon, settings = spec.partition(":")
        if name not in _POLICIES:
            raise ValueError(
                f"unknown temporal policy {spec!r}; accepted: None, {', '.join(temporal_names())}, a name with its "
                "main value such as 'teacache:0.4', or a config object such as TeaCache(threshold=0.4)"
            )
        return _make(spec, _POLICIES[name], settings) if colon else _POLICIES[name]()
    if isinstance(spec, type) or not isinstance(spec, Policy | Forecast):
        raise TypeError(f"temporal must be None, a name or a config such as TeaCache(), got {spec!r}")
    return spec


def resolve_each(spec: str | Temporal | ByExpert | None) -> tuple[Temporal | None, ...]:
    """The config of a setting, or of each of two denoisers with settings of their own (see `expert_settings`).

    Raises what `resolve_temporal` and `expert_settings` do, and ValueError for what isn't one denoiser's own.
    """
    given = expert_settings(spec)
    if given is None:
        return (resolve_temporal(spec),)  # type: ignore[arg-type]
    found = tuple(map(resolve_temporal, given.values()))
    for name, temporal in zip(given, found, strict=True):
        if isinstance(temporal, Forecast) or getattr(temporal, "reuse", None) == "prediction":
            raise ValueError(
                f"temporal={{{name!r}: {given[name]!r}}} forecasts whole predictions, whichever denoiser makes them; "
                "give it for both, as temporal='forecast:3', or what reuses blocks for each (teacache, seacache, "
                "taylorseer, toca, adaptive)"
            )
    return found


def _make(spec: str, factory: Factory, settings: str) -> Temporal:
    main, *others = settings.split(",")
    if "=" in main:
        main, others = "", [main, *others]
    elif not main:
        raise ValueError(f"temporal={spec!r}: {main!r} is not a number")
    options = {}
    accepted = inspect.signature(factory).parameters
    for option in others:
        name, equals, text = option.partition("=")
        if not equals or name not in accepted:
            raise ValueError(f"temporal={spec!r}: {option!r} is none of its options; accepted: {'=, '.join(accepted)}=")
        options[name] = _value(text)
    return factory(*([_numbers(spec, main)] if main else []), **options)


def _numbers(spec: str, text: str) -> Any:
    value = _value(text)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool | str):
            raise ValueError(f"temporal={spec!r}: {text!r} is not a number, nor one for each stage such as 0.5/0.3")
    return value


def _value(text: str) -> Any:
    """A number, true, false, several of them between slashes, or a word; one with slashes is a path."""
    if "/" in text:
        parts = tuple(_value(part) for part in text.split("/"))
        return text if any(isinstance(part, str) for part in parts) else parts
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
