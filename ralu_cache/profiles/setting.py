"""One composition as plain data: what `accelerate` is given, and how it is written into a file and read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from ralu_cache.history.solvers import resolve_solver
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.spatial import RALU
from ralu_cache.temporal import resolve_temporal

PARTS = ("spatial", "temporal", "guidance", "solver")
Config = TypeVar("Config")


@dataclass(frozen=True)
class Setting:
    """Arguments of `accelerate`; None leaves a part out, and a setting of Nones is the pipeline in full.

    spatial: a plan; one of a single stage is plain steps with levels of their own. temporal, solver: by name with
    settings, as `accelerate` reads them. guidance: where and at which scale it is computed. Raises ValueError or
    TypeError, with the value, for what `accelerate` would refuse.
    """

    spatial: RALU | None = None
    temporal: str | None = None
    guidance: Guidance | None = None
    solver: str | None = None

    def __post_init__(self) -> None:
        resolve_temporal(self.temporal)
        resolve_solver(self.solver)
        if self.spatial is not None and not isinstance(self.spatial.regions, str):
            raise TypeError(f"a setting names the scorer of its regions, got {self.spatial.regions!r}")

    @property
    def arguments(self) -> dict[str, Any]:
        """The parts that are there, by the names that `accelerate` has for them."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    @property
    def told(self) -> str:
        """In a line, for people."""
        parts = [] if self.spatial is None else [_told_plan(self.spatial)]
        parts += [part for part in (self.temporal, self.solver) if part is not None]
        if self.guidance is not None:
            parts.append(f"guided {self.guidance.told}")
        return ", ".join(parts) or "in full"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: of each part what differs from its defaults."""
        found = self.arguments
        for name in ("spatial", "guidance"):
            if name in found:
                found[name] = _differing(found[name])
        return found


def read_setting(data: Any) -> Setting:
    """What `Setting.to_dict` wrote. Raises ValueError or TypeError, with what is wrong, for anything else."""
    if not isinstance(data, Mapping):
        raise TypeError(f"a setting is an object, got {data!r}")
    if unknown := [name for name in data if name not in PARTS]:
        raise ValueError(f"a setting has no {unknown[0]!r}; accepted: {', '.join(PARTS)}")
    given = dict(data)
    if given.get("spatial") is not None:
        given["spatial"] = _config(RALU, given["spatial"])
    if given.get("guidance") is not None:
        given["guidance"] = _config(Guidance, given["guidance"])
    return Setting(**given)


def _config(kind: type[Config], data: Any) -> Config:
    if not isinstance(data, Mapping):
        raise TypeError(f"a {kind.__name__} is an object, got {data!r}")
    accepted = [field.name for field in fields(cast(Any, kind))]
    if unknown := [name for name in data if name not in accepted]:
        raise ValueError(f"a {kind.__name__} has no {unknown[0]!r}; accepted: {', '.join(accepted)}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def _differing(config: RALU | Guidance) -> dict[str, Any]:
    values = {field.name: (getattr(config, field.name), field.default) for field in fields(config)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, (value, default) in values.items() if value != default
    }  # fmt: skip


def _told_plan(plan: RALU) -> str:
    counts = plan.steps or plan.split or ()
    levels = plan.shifts if isinstance(plan.shifts, str) else "/".join(f"{shift:.2g}" for shift in plan.shifts)
    if len(counts) == 1:
        return f"{counts[0]} steps, shift {levels}"
    ends = ", ".join(f"{end:.2f}" for end in plan.ends[:-1])
    regions = f", {plan.ratio:.0%} by {plan.regions}" if len(counts) == 3 and isinstance(plan.ratio, float) else ""
    others = "".join(f", {part}" for part in (plan.noise, plan.start, plan.lift) if part not in DEFAULTS)
    return f"{'+'.join(map(str, counts))} steps to {ends}, shifts {levels}{regions}{others}"


DEFAULTS = (RALU.noise, RALU.start, RALU.lift)
