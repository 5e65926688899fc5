"""The profile of a model: for each call that was tuned for, the front of measured settings; and its file.

    profile = read_profile("ralu-cache.json")
    for front in profile.fronts:                     # one for each call that was tuned for
        for point in front.points:                   # from the slowest, with the least loss, to the fastest
            print(front.call.told, point.speedup, point.loss, point.setting.told)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ralu_cache.profiles.facts import Facts, Model
from ralu_cache.profiles.setting import Setting, read_setting

COSTS = ("seconds", "flops")
SCHEMA = 1
"""Of the file; one of another number is refused."""


@dataclass(frozen=True)
class Point:
    """A measured setting.

    speedup: how many times less of the full run's sampling time, the median of paired runs; where the front's cost is
    "flops", by these too. flop_ratio: how many times fewer of its FLOPs.
    loss: mean loss of quality, 0 for the full run, in the profile's measure; low, high: its 95 % bootstrap interval
    over prompts.
    """

    speedup: float
    flop_ratio: float
    loss: float
    low: float
    high: float
    setting: Setting

    @property
    def delivers(self) -> float:
        """The speed-up that can be promised of it: neither in time nor in FLOPs less."""
        return min(self.speedup, self.flop_ratio)

    @property
    def asked(self) -> float:
        """What to ask for to get it: the same, rounded down to a tenth."""
        return math.floor(10 * self.delivers + 1e-9) / 10


@dataclass(frozen=True)
class Measure:
    """How losses were judged: by which quality measure (`unit` of its loss), on how many prompts."""

    name: str
    label: str
    unit: str = ""
    prompts: int = 0


@dataclass(frozen=True)
class Front:
    """What was found for one call of the model: nothing that was measured is both faster and better than its points.

    points: from slow to fast. chosen: the index of the one that is taken where nobody says how fast or how good. cost:
    what speed was judged by, "seconds" or "flops".
    """

    call: Facts
    measure: Measure
    points: tuple[Point, ...]
    chosen: int = 0
    cost: str = "seconds"
    dtype: str = ""
    hardware: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a front has no points")
        if self.cost not in COSTS:
            raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {self.cost!r}")
        if not (type(self.chosen) is int and 0 <= self.chosen < len(self.points)):
            raise ValueError(f"chosen must be the index of one of {len(self.points)} points, got {self.chosen!r}")
        if [*self.points] != sorted(self.points, key=lambda point: point.speedup):
            raise ValueError("the points of a front must stand from slow to fast")

    def with_speedup(self, wanted: float) -> Point:
        """The one that is so fast and surely loses least. Raises ValueError, naming the fastest, if none is."""
        fitting = [point for point in self.points if point.delivers >= wanted]
        if not fitting:
            most = max(self.points, key=lambda point: point.delivers)
            raise ValueError(
                f"speedup={wanted:g} was not measured for {self.call.told}: the fastest is {most.delivers:.3g}x, with "
                f"a loss of {most.loss:.3g} {self.measure.unit} of {self.measure.label}; ask for less"
            )
        return min(fitting, key=lambda point: point.high)

    def with_loss(self, most: float) -> Point:
        """The fastest one that surely (`Point.high`) loses at most so much. Raises ValueError, naming the least."""
        fitting = [point for point in self.points if point.high <= most]
        if not fitting:
            least = min(self.points, key=lambda point: point.high)
            raise ValueError(
                f"max_loss={most:g} was not measured for {self.call.told}: the least is {least.loss:.3g} (surely not "
                f"above {least.high:.3g}) {self.measure.unit} of {self.measure.label}, {least.delivers:.3g}x faster; "
                "allow more"
            )
        return max(fitting, key=lambda point: point.delivers)


@dataclass(frozen=True)
class Profile:
    """What was measured of a model: a front for each call that was tuned for. name: as it was given to `tune`."""

    model: Model
    name: str
    fronts: tuple[Front, ...]

    def nearest(self, call: Facts) -> Front:
        return min(self.fronts, key=lambda front: front.call.distance(call))

    def adding(self, front: Front) -> Profile:
        """With a front in place of an older one for the same call."""
        return replace(self, fronts=(*(old for old in self.fronts if not old.call.matches(front.call)), front))

    def to_dict(self) -> dict[str, Any]:
        fronts = [
            vars(front) | {
                "call": asdict(front.call),
                "measure": asdict(front.measure),
                "points": [vars(point) | {"setting": point.setting.to_dict()} for point in front.points],
                "versions": dict(front.versions),
            }
            for front in self.fronts
        ]  # fmt: skip
        return {"schema": SCHEMA, "model": asdict(self.model), "name": self.name, "fronts": fronts}

    def save(self, path: str | PathLike[str]) -> None:
        """Writes it as JSON, whole or not at all; makes the folder."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".tmp")
        unfinished.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        unfinished.replace(target)


def read_profile(path: str | PathLike[str]) -> Profile:
    """The profile in a file that `ralu-cache tune` wrote. Raises ValueError, with the path and why, for any other."""
    try:
        return profile_from(json.loads(Path(path).read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no profile of `ralu-cache tune`: {error}") from error


def profile_from(data: Any) -> Profile:
    """What `Profile.to_dict` gave. Raises ValueError or TypeError, with what is wrong, for anything else."""
    given = _named("a profile", data, ("schema", "model", "name", "fronts"))
    if given["schema"] != SCHEMA:
        raise ValueError(f"its schema is {given['schema']!r}, and this version reads {SCHEMA}; tune again")
    model = Model(**_named("its model", given["model"], [each.name for each in fields(Model)]))
    fronts = tuple(_front(each) for each in _items("fronts", given["fronts"]))
    if not fronts:
        raise ValueError("it has no fronts")
    return Profile(model, str(given["name"]), fronts)


def _front(data: Any) -> Front:
    given = _named("a front", data, [each.name for each in fields(Front)])
    call = _named("a call", given["call"], [each.name for each in fields(Facts)])
    for name, value in call.items():
        if value is not None and not _finite(value):
            raise ValueError(f"a call's {name} must be a positive number or null, got {value!r}")
    measure = Measure(**_named("a measure", given["measure"], [each.name for each in fields(Measure)]))
    points = tuple(_point(each) for each in _items("points", given["points"]))
    others = {name: given[name] for name in ("chosen", "cost", "dtype", "hardware", "versions")}
    return Front(Facts(**call), measure, points, **others)


def _point(data: Any) -> Point:
    given = dict(_named("a point", data, [each.name for each in fields(Point)]))
    for name in ("speedup", "flop_ratio"):
        if not _finite(given[name]):
            raise ValueError(f"a point's {name} must be a number above 0, got {given[name]!r}")
    for name in ("loss", "low", "high"):
        if isinstance(given[name], bool) or not isinstance(given[name], int | float) or not math.isfinite(given[name]):
            raise ValueError(f"a point's {name} must be a finite number, got {given[name]!r}")
    return Point(**(given | {"setting": read_setting(given["setting"])}))


def _finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf


def _named(what: str, data: Any, names: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"{what} must be an object, got {type(data).__name__}")
    missing = [name for name in names if name not in data]
    unknown = [name for name in data if name not in names]
    if missing or unknown:
        wrong = f"lacks {missing[0]!r}" if missing else f"has an unknown {unknown[0]!r}"
        raise ValueError(f"{what} {wrong}; it has {', '.join(names)}")
    return data


def _items(what: str, data: Any) -> Sequence[Any]:
    if not isinstance(data, list):
        raise TypeError(f"{what} must be a list, got {type(data).__name__}")
    return data
