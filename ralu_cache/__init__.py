"""Several times faster diffusion transformers, training-free: spatial stages and temporal caching that compose."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ralu_cache.moved import keep_old_names

if TYPE_CHECKING:
    from ralu_cache.api import Acceleration, accelerate
    from ralu_cache.history.solvers import Multistep
    from ralu_cache.plane.guidance import Guidance
    from ralu_cache.plane.regions import Scorer, register_scorer
    from ralu_cache.plane.spatial import RALU, register_spatial
    from ralu_cache.report.record import Report
    from ralu_cache.temporal import Adaptive, Forecast, SeaCache, TaylorSeer, TeaCache, ToCa, register_temporal

_HOMES = {
    "Acceleration": "api",
    "accelerate": "api",
    "Guidance": "plane.guidance",
    "RALU": "plane.spatial",
    "register_spatial": "plane.spatial",
    "Report": "report.record",
    "Scorer": "plane.regions",
    "register_scorer": "plane.regions",
    "Multistep": "history.solvers",
    "Adaptive": "temporal",
    "Forecast": "temporal",
    "SeaCache": "temporal",
    "TaylorSeer": "temporal",
    "TeaCache": "temporal",
    "ToCa": "temporal",
    "register_temporal": "temporal",
}
__all__ = [
    "RALU", "Acceleration", "Adaptive", "Forecast", "Guidance", "Multistep", "Report", "Scorer",
    "SeaCache", "TaylorSeer", "TeaCache", "ToCa",
    "accelerate", "register_scorer", "register_spatial", "register_temporal",
]  # fmt: skip
__version__ = "0.1.0"
keep_old_names()


def __getattr__(name: str) -> Any:
    """Public names load their module when first used, so that `import ralu_cache` itself is light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ralu_cache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ralu_cache.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
