"""The names of combined methods, "spatial+temporal+solver=...+guidance=...", for the demo and the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ralu_cache.history.solvers import resolve_solver
from ralu_cache.plane.guidance import resolve_guidance
from ralu_cache.plane.spatial import spatial_names
from ralu_cache.temporal import resolve_each, temporal_names
from ralu_cache.temporal.experts import EXPERTS, expert_settings

GUIDANCE = "guidance="
SOLVER = "solver="
_NEXT = re.compile(r"\+(?!\s*\d)")  # the plus sign of "seacache:1e+1" is a number's


@dataclass(frozen=True)
class Method:
    """Four arguments of `accelerate`, by name; None leaves a part out."""

    spatial: str | None = None
    temporal: str | None = None
    guidance: str | None = None
    solver: str | None = None

    @property
    def uncached(self) -> Method:
        """The same plan, guidance and solver without temporal caching."""
        return replace(self, temporal=None)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that are there, by the names that `accelerate` has for them."""
        return {name: part for name, part in asdict(self).items() if part is not None}

    def __str__(self) -> str:
        """As `parse_method` reads it; "none" for plain sampling."""
        guidance = None if self.guidance is None else f"{GUIDANCE}{self.guidance}"
        solver = None if self.solver is None else f"{SOLVER}{self.solver}"
        others = "".join(f"+{part}" for part in (self.temporal, solver, guidance) if part is not None)
        return f"{self.spatial or ''}{others}" or "none"


def parse_method(text: str) -> Method:
    """ "ralu-4x", "ralu-4x+seacache:0.3", "+teacache", "ralu-4x+teacache:0.4+guidance=early", "+guidance=early:0.65".

    The spatial part stands before the first "+"; a temporal one, perhaps with settings after a colon, one for the
    solver ("+solver=multistep") and one for guidance follow in any order. A part that is empty or "none" is left out.
    Raises ValueError for unknown names, for values that are not accepted, and for a part that is there twice.
    """
    spatial, *others = (part.strip() for part in _NEXT.split(text))
    if spatial not in ("", "none", *spatial_names()):
        hint = f"; a {_kind(spatial)} alone is written '+{spatial}'" if _kind(spatial) else ""
        raise ValueError(f"unknown spatial method {spatial!r}; accepted: none, {', '.join(spatial_names())}{hint}")
    found: dict[str, str] = {}
    for part in others:
        name, value, check = _part(part)
        if value in ("", "none"):
            continue
        check(value)
        if name in found:
            raise ValueError(f"method {text!r} has two {name} parts, {found[name]!r} and {value!r}; give one of them")
        found[name] = value
    return Method(None if spatial in ("", "none") else spatial, **found)


def _part(part: str) -> tuple[str, str, Callable[[str], object]]:
    """Which part it is, its value, and what checks that."""
    if part.startswith(GUIDANCE):
        return "guidance", part.removeprefix(GUIDANCE).strip(), resolve_guidance
    if part.startswith(SOLVER):
        return "solver", part.removeprefix(SOLVER).strip(), resolve_solver
    return "temporal", part, _check_temporal


def _check_temporal(part: str) -> None:
    try:
        resolve_each(part)
    except ValueError as error:
        if part.partition(":")[0] in temporal_names() or part.startswith(EXPERTS):
            raise
        raise ValueError(
            f"{error}; guidance is written '+{GUIDANCE}early', a solver '+{SOLVER}multistep'"
        ) from error


def _kind(text: str) -> str | None:
    if text.startswith(GUIDANCE):
        return "part for guidance"
    if text.startswith(SOLVER):
        return "solver"
    return "temporal policy" if text.partition(":")[0] in temporal_names() or expert_settings(text) else None
