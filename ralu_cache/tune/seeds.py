"""Where the search begins: the presets (the front found by hand among them), plain steps, and solvers on few steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ralu_cache.plane.presets import LATE_PLANS, PRESETS, LatePlan, Preset
from ralu_cache.plane.spatial import RALU
from ralu_cache.tune.space import Given, Space

BARE: dict[str, Any] = {"temporal": "none", "solver": "euler"}
STAGED = BARE | {"noise": "rewind", "start": "pooled", "lift": "nearest", "scorer": "latent-gradient"}


def seeds(space: Space) -> list[dict[str, Any]]:
    """Parameters of the settings to try first, each whole, as the space would ask for them; none twice."""
    found: dict[Any, dict[str, Any]] = {}
    for values in _all(space):
        if space.scales is not None:
            values = values | {"scale": space.scales[1]}
        asked = _Asked(values)
        try:
            setting = space.suggest(asked)
        except KeyError:  # the space leaves out something that it needs
            continue
        found.setdefault(setting, asked.used)
    return list(found.values())


def _all(space: Space) -> Iterator[dict[str, Any]]:
    for late in LATE_PLANS.values():
        yield _late(late)
    for published in PRESETS.values():
        yield _published(published)
    few, many = ([max(round(space.steps / ratio), 1) for ratio in ratios] for ratios in ((4, 7, 10), (2, 4)))
    for count in few:
        yield _plain(count) | {"levels": "own", "plain_shift": 2.5}
    for count in (*many, few[1]):
        yield _plain(count)
    for count in few[:2]:
        yield _plain(count) | {"plain_guided": "until", "guided_until": 0.5}
        yield _plain(count) | {"solver": "multistep"}
    yield _plain(max(2, space.steps // 2)) | {"temporal": "taylorseer", "interval": 3, "order": 1}
    yield _plain(space.steps) | {"temporal": "forecast", "interval": 3, "order": 1, "quantity": "velocity"}


def _plain(steps: int) -> dict[str, Any]:
    return BARE | {"stages": 1, "plain_steps": steps, "levels": "model", "plain_guided": "all"}


def _late(plan: LatePlan) -> dict[str, Any]:
    values = STAGED | {"stages": 2, "coarse_end": plan.ends[0], "z": plan.z, "levels": "model"}
    values |= {"coarse_steps": plan.steps[0], "fine_steps": plan.steps[1]}
    values |= {"guided": "coarse" if plan.guidance == "early" else "all"}
    if isinstance(plan.shifts, tuple):
        values |= {"levels": "own", "coarse_shift": plan.shifts[0], "fine_shift": plan.shifts[1]}
    return values


def _published(preset: Preset) -> dict[str, Any]:
    plan = RALU.preset(preset.name)
    low, middle, _ = plan.ends
    steps = dict(zip(("coarse_steps", "mixed_steps", "fine_steps"), preset.steps, strict=True))
    further = round((middle - low) / (1 - low), 2)
    return STAGED | steps | {
        "stages": 3, "coarse_end": low, "mixed_end": further, "ratio": preset.ratio, "z": 3.0, "levels": "model",
        "guided": "all",
    }  # fmt: skip


class _Asked(Given):
    """Given parameters that remember which of them were asked, and within which bounds they were taken."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        object.__setattr__(self, "used", {})

    used: dict[str, Any]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.used[name] = super().suggest_int(name, low, high)
        return int(self.used[name])

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value = super().suggest_float(name, low, high)
        self.used[name] = round(low + round((value - low) / step) * step, 6) if step else value
        return float(self.used[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.used[name] = super().suggest_categorical(name, choices)
        return self.used[name]
