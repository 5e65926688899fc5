"""Profiles: TeaCache's polynomials as `ralu-cache calibrate` fitted them to one model, and the file that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """A polynomial of the signal's change, highest power first.

    Outside [low, high] it keeps the value it has at the nearer end, because a polynomial explodes where nothing was
    fitted; no value is below `floor`. Raises ValueError for anything but finite coefficients and an ordered range.
    """

    coefficients: tuple[float, ...]
    low: float = -math.inf
    high: float = math.inf
    floor: float = -math.inf

    def __post_init__(self) -> None:
        given = self.coefficients
        numbers = isinstance(given, tuple) and given and all(type(c) in (int, float) for c in given)
        if not numbers or not torch.tensor(given, dtype=torch.float64).isfinite().all():
            raise ValueError(f"coefficients must be a tuple of finite numbers, highest power first, got {given!r}")
        if not self.low <= self.high:
            raise ValueError(f"the range must be (low, high), got ({self.low!r}, {self.high!r})")

    def __call__(self, change: Tensor) -> Tensor:
        """The value at each change, by Horner's rule: float32, any shape -> the same; nan stays nan."""
        change = change.clamp(self.low, self.high)
        value = torch.zeros_like(change)
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value.clamp(min=self.floor)


@dataclass(frozen=True)
class StageFit:
    """The polynomial of one stage, and how well it fits.

    coefficients: highest power first. range: smallest and largest change of the signal among the pairs. rms: root mean
    square of what the fit misses, in units of the output's change. r2: share of the pairs' variance that it explains,
    None if they have none. pairs: so many were fitted.
    """

    coefficients: tuple[float, ...]
    range: tuple[float, float]
    rms: float
    r2: float | None
    pairs: int

    @property
    def curve(self) -> Curve:
        return Curve(self.coefficients, *self.range, floor=0.0)


@dataclass(frozen=True)
class Profile:
    """What `ralu-cache calibrate` found: one fit for each stage of the plan, and what it was found on.

    model: its name; plan: the spatial method; steps: of one run, all stages; arguments: of the pipeline's call.
    """

    model: str
    plan: str
    steps: int
    stages: tuple[StageFit, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """One for each stage."""
        return tuple(stage.curve for stage in self.stages)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the profile as JSON; makes the folder."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")


def read_profile(path: str | PathLike[str]) -> Profile:
    """The profile in a file that `ralu-cache calibrate` wrote. Raises ValueError, with the path, for any other."""
    try:
        data = json.loads(Path(path).read_text())
        stages = tuple(_stage(**stage) for stage in data.pop("stages"))
        profile = Profile(stages=stages, **data)
        if not profile.curves:
            raise ValueError("it has no stages")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no TeaCache profile; `ralu-cache calibrate --out {path}` writes one ({error})"
        ) from error
    return profile


def _stage(coefficients: list[float], range: list[float], **quality: Any) -> StageFit:
    low, high = range
    return StageFit(tuple(coefficients), (low, high), **quality)
