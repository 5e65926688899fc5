"""The names of combined methods, "spatial+temporal+guidance=...", as the demo and the command line write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ralu_cache.plane.guidance import resolve_guidance
from ralu_cache.plane.spatial import spatial_names
from ralu_cache.temporal import resolve_temporal, temporal_names

GUIDANCE = "guidance="
_NEXT = re.compile(r"\+(?!\s*\d)")  # the plus sign of "seacache:1e+1" is a number's


@dataclass(frozen=True)
class Method:
    """The three arguments of `accelerate`, by name; None leaves a part out."""

    spatial: str | None = None
    temporal: str | None = None
    guidance: str | None = None

    @property
    def uncached(self) -> Method:
        """The same plan and guidance without temporal caching."""
        return Method(self.spatial, None, self.guidance)

    @property
    def parts(self) -> dict[str, str]:
        """The parts that are there, by the names that `accelerate` has for them."""
        named = {"spatial": self.spatial, "temporal": self.temporal, "guidance": self.guidance}
        return {name: part for name, part in named.items() if part is not None}

    def __str__(self) -> str:
        """As `parse_method` reads it; "none" for plain sampling."""
        guidance = None if self.guidance is None else f"{GUIDANCE}{self.guidance}"
        others = "".join(f"+{part}" for part in (self.temporal, guidance) if part is not None)
        return f"{self.spatial or ''}{others}" or "none"


def parse_method(text: str) -> Method:
    """ "ralu-4x", "ralu-4x+seacache:0.3", "+teacache", "ralu-4x+teacache:0.4+guidance=early", "+guidance=early:0.65".

    The spatial part stands before the first "+"; a temporal one, perhaps with settings after a colon, and one for
    guidance follow in any order. A part that is empty or "none" is left out. Raises ValueError for unknown names, for
    values that are not accepted, and for a part that is there twice.
    """
    spatial, *others = (part.strip() for part in _NEXT.split(text))
    if spatial not in ("", "none", *spatial_names()):
        hint = f"; a {_kind(spatial)} alone is written '+{spatial}'" if _kind(spatial) else ""
        raise ValueError(f"unknown spatial method {spatial!r}; accepted: none, {', '.join(spatial_names())}{hint}")
    found: dict[str, str] = {}
    for part in others:
        name = "guidance" if part.startswith(GUIDANCE) else "temporal"
        value = part.removeprefix(GUIDANCE).strip()
        if value in ("", "none"):
            continue
        if name == "guidance":
            resolve_guidance(value)
        else:
            _check_temporal(value)
        if name in found:
            raise ValueError(f"method {text!r} has two {name} parts, {found[name]!r} and {value!r}; give one of them")
        found[name] = value
    return Method(None if spatial in ("", "none") else spatial, **found)


def _check_temporal(part: str) -> None:
    try:
        resolve_temporal(part)
    except ValueError as error:
        if part.partition(":")[0] in temporal_names():
            raise
        raise ValueError(f"{error}; guidance is written '+{GUIDANCE}early'") from error


def _kind(text: str) -> str | None:
    if text.startswith(GUIDANCE):
        return "part for guidance"
    return "temporal policy" if text.partition(":")[0] in temporal_names() else None
