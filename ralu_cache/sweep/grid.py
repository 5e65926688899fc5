"""What a sweep runs: settings from a grid, batches from prompts and seeds; from flags, a YAML file, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from ralu_cache.sweep.contenders import check_method
from ralu_cache.sweep.methods import GUIDANCE
from ralu_cache.sweep.records import Batch, Setting


@dataclass(frozen=True)
class Grid:
    """spatial, temporal, guidance: names, "none" to leave one out; each with each is a method. thresholds: main values
    for each temporal policy that has none of its own; empty for their defaults. methods: further ones, as they are.
    steps: asked of every setting, the most of them of the full run; plain_steps: the stock pipeline with fewer.
    sizes: (height, width) in pixels. prompts, seeds: every prompt runs with every seed, `batch` of them in one call.

    Raises ValueError, with the name of the option, for what cannot be run.
    """

    spatial: tuple[str, ...] = ()
    temporal: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    methods: tuple[str, ...] = ()
    steps: tuple[int, ...] = (50,)
    plain_steps: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ((128, 128),)
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    batch: int = 4
    guidance: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "sizes", "prompts", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got none")
        for name in ("steps", "plain_steps"):
            if wrong := [steps for steps in getattr(self, name) if steps < 1]:
                raise ValueError(f"{name} must be positive, got {wrong[0]}")
        if self.batch < 1:
            raise ValueError(f"batch must be positive, got {self.batch}")
        for method in self.all_methods():
            check_method(method)

    def all_methods(self) -> list[str]:
        """Every method once; the full run first, which shows the noise of the timing and the best of each metric."""
        found = ["none", *(f"steps:{steps}" for steps in self.plain_steps)]
        every = product(self.spatial or ("none",), self._policies(), self.guidance or ("none",))
        for spatial, temporal, guidance in every:
            guided = "" if guidance == "none" else f"+{GUIDANCE}{guidance}"
            found.append(f"{spatial}+{temporal}".removesuffix("+none") + guided)
        tidy = [method.removesuffix("+none").removeprefix("none") or "none" for method in [*found, *self.methods]]
        return list(dict.fromkeys(tidy))

    def settings(self) -> list[Setting]:
        """Each once, however often the options name it."""
        every = product(self.steps, self.sizes, self.all_methods())
        return list(dict.fromkeys(Setting(method, steps, height, width) for steps, (height, width), method in every))

    def batches(self) -> list[Batch]:
        """Every prompt with every seed, exactly once; a seed's prompts stand together."""
        pairs = list(dict.fromkeys((prompt, seed) for seed in self.seeds for prompt in self.prompts))
        cuts = [pairs[start : start + self.batch] for start in range(0, len(pairs), self.batch)]
        return [Batch(tuple(prompt for prompt, _ in cut), tuple(seed for _, seed in cut)) for cut in cuts]

    def _policies(self) -> list[str]:
        found = []
        for policy in self.temporal or ("none",):
            plain = policy == "none" or ":" in policy or not self.thresholds
            found += [policy] if plain else [f"{policy}:{threshold:g}" for threshold in self.thresholds]
        return found


def grid_from(given: Mapping[str, Any], file: Path | None = None) -> Grid:
    """A grid from options, on top of those of a YAML file of the same names; a name given twice is the option's.

    sizes may be written "128x128"; prompts may be a list, the path of a text file with one a line. Raises ValueError
    for an unknown name and for values of the wrong kind.
    """
    data = {**(read_yaml(file) if file is not None else {}), **given}
    accepted = [field.name for field in fields(Grid)]
    if unknown := [name for name in data if name not in accepted]:
        raise ValueError(f"unknown option {unknown[0]!r} of a sweep; accepted: {', '.join(accepted)}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name == "prompts" and isinstance(value, str):
            value = [line.strip() for line in Path(value).read_text().splitlines() if line.strip()]
        if name == "batch":
            values[name] = _number(name, value, int)
            continue
        items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        kind = {"thresholds": float, "steps": int, "plain_steps": int, "seeds": int}.get(name)
        if name == "sizes":
            values[name] = tuple(_size(item) for item in items)
        else:
            values[name] = tuple(str(item) if kind is None else _number(name, item, kind) for item in items)
    return replace(Grid(prompts=("-",)), **values) if "prompts" in values else Grid(**values)


def read_yaml(file: Path) -> dict[str, Any]:
    """The options of a YAML file. Raises ValueError unless it holds a mapping."""
    import yaml

    data = yaml.safe_load(file.read_text())
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold options by name, such as 'spatial: [none, ralu-4x]'")
    return data


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {'whole ' if kind is int else ''}numbers, got {value!r}") from error
    if isinstance(value, bool) or number != float(value):
        raise ValueError(f"{name} must be {'whole ' if kind is int else ''}numbers, got {value!r}")
    return number


def _size(item: Any) -> tuple[int, int]:
    parts = item.split("x") if isinstance(item, str) else item
    if not isinstance(parts, Sequence) or len(parts) != 2 or not all(str(part).isdecimal() for part in parts):
        raise ValueError(f"sizes are written HEIGHTxWIDTH in pixels, such as 1024x768, got {item!r}")
    return int(parts[0]), int(parts[1])
