"""Pipelines with a denoiser each for high and low noise levels (Wan 2.2), which change places at a boundary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ralu_cache.temporal.experts import ByExpert


def denoisers_of(pipe: Any) -> list[Any]:
    """The denoiser or, of a pipeline that has one each for high and low noise levels, both in this order."""
    second = getattr(pipe, "transformer_2", None)
    return [pipe.transformer] if second is None else [pipe.transformer, second]


def boundary_of(pipe: Any) -> float | None:
    """The share of the training time steps below which the second denoiser is called; None where there is one alone."""
    if getattr(pipe, "transformer_2", None) is None:
        return None
    ratio = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
    return None if ratio is None else float(ratio)


def check_experts(pipe: Any, spatial: Any, temporal: ByExpert | None) -> None:
    """Raise ValueError for settings by denoiser on a pipeline that hasn't two, and for stages by denoiser on any."""
    if isinstance(spatial, Mapping):
        raise ValueError(
            f"spatial={spatial!r}: one plan goes over all noise levels, whichever denoiser is called at each; give one "
            "for both, such as 'ralu', and temporal={'high': ..., 'low': ...}"
        )
    if temporal is not None and boundary_of(pipe) is None:
        raise ValueError(
            f"temporal={dict(temporal)!r} is for pipelines with two denoisers (transformer, transformer_2 and a "
            f"boundary_ratio, as Wan 2.2's), and this {type(pipe).__name__} has one; leave out 'high' and 'low'"
        )
