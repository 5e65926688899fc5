"""The names of combined methods, "spatial+temporal", as the demo and the command line write them."""

from __future__ import annotations

from dataclasses import dataclass

from ralu_cache.spatial import spatial_names
from ralu_cache.temporal import resolve_temporal, temporal_names


@dataclass(frozen=True)
class Method:
    """The two arguments of `accelerate`, by name; None leaves a part out."""

    spatial: str | None
    temporal: str | None

    @property
    def uncached(self) -> Method:
        """The same plan without temporal caching."""
        return Method(self.spatial, None)


def parse_method(text: str) -> Method:
    """Before the first "+" is the spatial part, after it the temporal: "ralu-4x", "ralu-4x+seacache:0.3", "+teacache".

    A part that is empty or "none" is left out; a temporal one may bring its main value after a colon. Raises
    ValueError for unknown names, and for values that the policy does not accept.
    """
    parts = [part.strip() for part in text.partition("+")[::2]]
    spatial, temporal = (None if part in ("", "none") else part for part in parts)
    if spatial is not None and spatial not in spatial_names():
        hint = f"; a temporal policy alone is written '+{spatial}'" if _is_temporal(spatial) else ""
        raise ValueError(f"unknown spatial method {spatial!r}; accepted: none, {', '.join(spatial_names())}{hint}")
    resolve_temporal(temporal)
    return Method(spatial, temporal)


def _is_temporal(text: str) -> bool:
    return text.partition(":")[0] in temporal_names()
