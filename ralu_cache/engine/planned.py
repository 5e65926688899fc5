"""`speedup=`, `max_loss=` and `profile=`: a setting for each call, measured on this model or else its family's plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ralu_cache.adapters.parts import need
from ralu_cache.adapters.protocols import Adapter
from ralu_cache.engine.parts import Parts, resolve_parts
from ralu_cache.plane.budget import BASE, Budget, wanted_speedup
from ralu_cache.profiles.facts import Facts, Model
from ralu_cache.profiles.finding import find_profiles
from ralu_cache.profiles.profile import Front, Point, Profile, read_profile


@dataclass(frozen=True)
class Wish:
    """How fast every call is to be, or how much it may lose at most; neither: as the profile itself would choose."""

    speedup: float | None = None
    max_loss: float | None = None

    @classmethod
    def read(cls, speedup: str | float | None, max_loss: float | None) -> Wish:
        """Raises ValueError for anything but a number above 1 and a number of at least 0, or for both."""
        if speedup is not None and max_loss is not None:
            raise ValueError(f"speedup={speedup!r} or max_loss={max_loss!r}: give one of them")
        number = isinstance(max_loss, int | float) and not isinstance(max_loss, bool)
        if max_loss is not None and not (number and 0 <= max_loss < math.inf):
            raise ValueError(f"max_loss must be a number of at least 0, in the profile's measure, got {max_loss!r}")
        return cls(None if speedup is None else wanted_speedup(speedup), max_loss)

    def choose(self, front: Front) -> Point:
        """Raises ValueError, with the nearest that there is, if nothing measured is as wished."""
        if self.speedup is not None:
            return front.with_speedup(self.speedup)
        return front.points[front.chosen] if self.max_loss is None else front.with_loss(self.max_loss)


@dataclass(frozen=True)
class Choice:
    """What calls like one that was measured get: parts, or a refusal with its reason."""

    call: Facts
    parts: Parts | None
    refusal: str = ""


@dataclass(frozen=True)
class Planned:
    """See `Planner`. choices: what was measured. budget: with the family's plan for other calls, `base`, in whose place
    each call gets one of its own; without, they run in full. told: what is said to calls that nothing was measured for.
    """

    choices: tuple[Choice, ...]
    budget: Budget | None
    base: Parts
    profiles: tuple[tuple[Path, Profile], ...] = ()

    @property
    def all(self) -> tuple[Parts, ...]:
        """See `Planner`."""
        return (self.base, *(choice.parts for choice in self.choices if choice.parts is not None))

    def parts(self, call: Facts, coarse: float) -> Parts:
        """See `Planner`."""
        found = next((choice for choice in self.choices if choice.call.matches(call)), None)
        if found is not None:
            if found.parts is None:
                raise ValueError(found.refusal)
            return found.parts
        notices = () if not self.profiles else (_unmeasured(self.profiles, call, self.budget is not None),)
        if self.budget is None:
            return replace(self.base, notices=notices)
        method = self.budget.plan(call.steps, coarse)
        notices = (*notices, self.budget.told(call.steps))
        return replace(self.base, method=method, notices=notices, promised=self.budget.speedup)


def planned(
    pipe: Any, adapter: Adapter, wish: Wish, profile: str | PathLike[str] | Profile | None = None,
    others: Parts | None = None,
) -> Planned:  # fmt: skip
    """What gives each call its parts. others: guidance and solver of the caller's own, with which nothing was measured,
    so that no profile is asked.

    Raises ValueError for a profile that is none or another model's, where a profile is needed and none is found, and
    where the family's plan is needed and its adapter lacks a part for it.
    """
    model, found = Model.of(pipe), list[tuple[Path, Profile]]()
    if profile is not None:
        given = profile if isinstance(profile, Profile) else read_profile(profile)
        source = Path(model.config if isinstance(profile, Profile) else profile)
        if given.model != model:
            raise ValueError(
                f"{source} is the profile of {given.name}, a {given.model.told}, and this is a {model.told}; "
                "`ralu-cache tune --model ...` makes one for it"
            )
        found = [(source, given)]
    elif others is None:
        found = find_profiles(pipe)
    if not found and wish.speedup is None:
        raise ValueError(
            f"max_loss={wish.max_loss:g} needs a profile, and none was found for {model.told}; "
            "`ralu-cache tune --model ... --prompts ...` makes one"
        )
    choices = [_choice(pipe, adapter, wish, path, each, front) for path, each in found for front in each.fronts]
    if wish.speedup is None:
        return Planned(tuple(choices), None, Parts(), tuple(found))
    for part in ("cost", "tokens"):
        need(type(adapter), part, f"speedup={wish.speedup:g}")
    budget = Budget(wish.speedup)
    base = replace(others or Parts(), method=BASE, plan=repr(budget))
    return Planned(tuple(choices), budget, base, tuple(found))


def _choice(pipe: Any, adapter: Adapter, wish: Wish, path: Path, profile: Profile, front: Front) -> Choice:
    try:
        point = wish.choose(front)
    except ValueError as error:
        return Choice(front.call, None, f"{error} (profile {path})")
    parts = resolve_parts(pipe, adapter, **point.setting.arguments)
    measure = front.measure
    time = f"{point.speedup:.3g}x in time and " if front.cost == "seconds" else ""
    where = ", ".join(part for part in (front.hardware, front.dtype) if part)
    loss = f"{measure.label} {point.loss:.3g} {measure.unit}".rstrip()
    told = (
        f"{point.setting.told}: measured on {profile.name} at {time}{point.flop_ratio:.3g}x in FLOPs ({where}), "
        f"{loss} worse than in full, {measure.prompts} prompts (profile {path})"
    )
    promised = point.delivers if wish.speedup is None else wish.speedup
    return Choice(front.call, replace(parts, plan=point.setting.told, notices=(told,), promised=promised))


def _unmeasured(profiles: Sequence[tuple[Path, Profile]], call: Facts, planned: bool) -> str:
    """What is said of a call for which nothing was measured."""
    nearest = [(path, profile.nearest(call)) for path, profile in profiles]
    path, front = min(nearest, key=lambda each: each[1].call.distance(call))
    instead = "the family's own plan is taken" if planned else "it runs in full"
    return (
        f"nothing was measured for a call with {call.told}; the nearest, in {path}, is for {front.call.told}, and is "
        f"not used: {instead}. `ralu-cache tune --model ... {call.flags}` measures this one"
    )
