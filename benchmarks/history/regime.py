"""In the regime, where few steps break pictures: what reuse gives on top of the best plans of stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.history.runs import FULL, Bench, Setting
from benchmarks.regime.pictures import Shelf
from ralu_cache import RALU, Forecast
from ralu_cache.quality.attributes import attribute_accuracy, probability_of_the_stated
from ralu_cache.quality.perceptual import perceptual_distance
from ralu_cache.quality.texture import mean_gradient

GUIDANCE = 6.0
LATE: dict[str, Any] = {"shifts": (3.3, 1.4), "z": 2.2}
"""Of the late plans (`ralu_cache.plane.presets`)."""
MODELS_OWN = {"shifts": "model", "z": 3.0}
"""Of "ralu-8x", the default, which leaves guidance to the call; so it does with guidance="early" beside it."""
BASES: dict[str, tuple[tuple[int, int], float, str, dict[str, Any]]] = {
    "8+4 to 0.5": ((8, 4), 0.5, "early", LATE),
    "8+2 to 0.65 (ralu-15x)": ((8, 2), 0.65, "early", LATE),
    "8+4 to 0.5, guided (ralu-8x)": ((8, 4), 0.5, "all", MODELS_OWN),
    "8+4 to 0.5, guided early (ralu-8x)": ((8, 4), 0.5, "early", MODELS_OWN),
}
FEWER: dict[str, Sequence[tuple[int, int]]] = {
    "8+4 to 0.5": ((8, 3), (8, 2), (6, 4), (6, 3), (5, 3), (4, 3), (4, 2)),
    "8+2 to 0.65 (ralu-15x)": ((8, 1), (6, 2), (5, 2), (4, 2)),
    "8+4 to 0.5, guided (ralu-8x)": ((8, 3), (8, 2)),
    "8+4 to 0.5, guided early (ralu-8x)": ((8, 3), (8, 2)),
}
SOLVERS = ("euler", "multistep")
POLICIES: dict[str, Forecast] = {
    "fine steps, every 2nd, clean kept": Forecast((1, 2), quantity="clean"),
    "fine steps, every 2nd, velocity kept": Forecast((1, 2), quantity="velocity"),
    "fine steps, every 2nd, reset": Forecast((1, 2), quantity="velocity", transition="reset"),
    "fine steps, every 2nd, damped 0.5": Forecast((1, 2), quantity="clean", damping=0.5),
    "fine steps, every 2nd, held": Forecast((1, 2), quantity="clean", order=0),
    "fine steps, first of 4, clean kept": Forecast((1, 4), quantity="clean"),
    "coarse steps, every 2nd, velocity": Forecast((2, 1), quantity="velocity"),
    "coarse steps, every 2nd, damped 0.5": Forecast((2, 1), quantity="velocity", damping=0.5),
    "coarse steps, every 2nd, bounded": Forecast((2, 1), quantity="velocity", gap=1.0),
    "coarse steps, every 2nd, held": Forecast((2, 1), quantity="velocity", order=0),
    "coarse steps, the last 2 of 8, line": Forecast((8, 1), quantity="velocity", first=6, ramp=False),
    "coarse steps, the last 2 of 8, clean": Forecast((8, 1), quantity="clean", first=6, ramp=False),
    "coarse steps, the last 2 of 8, held": Forecast((8, 1), quantity="clean", order=0, first=6, ramp=False),
    "coarse steps, the last 3 of 8, clean": Forecast((8, 1), quantity="clean", first=5, ramp=False),
    "coarse steps, the last 3 of 8, held": Forecast((8, 1), quantity="clean", order=0, first=5, ramp=False),
    "coarse steps, the last 3 of 8, damped 0.5": Forecast((8, 1), quantity="clean", damping=0.5, first=5, ramp=False),
}


def plan_of(steps: tuple[int, int], end: float, guidance: str, own: dict[str, Any]) -> RALU:
    return RALU(steps=steps, ends=(end, 1.0), guidance=guidance, **own)


def settings() -> Iterator[Setting]:
    """The plans, fewer steps of theirs by each solver, and forecasts in their stages."""
    for base, (steps, end, guidance, own) in BASES.items():
        for counts in (steps, *FEWER[base]):
            for solver in SOLVERS:
                name = f"{base}: {counts[0]}+{counts[1]} {solver}"
                parts = {"base": base, "steps": f"{counts[0]}+{counts[1]}", "solver": solver, "reuse": "none"}
                options: dict[str, Any] = {"spatial": plan_of(counts, end, guidance, own), "solver": solver}
                yield Setting(name, options, FULL, parts)
        for reuse, policy in POLICIES.items():
            if steps[1] == 2 and "fine" in reuse and "every 2nd" not in reuse:
                continue
            parts = {"base": base, "steps": f"{steps[0]}+{steps[1]}", "solver": "euler", "reuse": reuse}
            options = {"spatial": plan_of(steps, end, guidance, own), "temporal": policy}
            yield Setting(f"{base}: {reuse}", options, FULL, parts)


def measure(bench: Bench, shelf: Shelf, setting: Setting) -> dict[str, Any]:
    """A row: cost, and of every picture what it shows, and how it differs from the full run's."""
    shown, cost = bench.draw(setting)
    full, prompts = shelf.pictures(bench.full(), bench.count), bench.prompts
    return {
        "name": setting.name, "cost": cost, "parts": setting.parts,
        "attributes": attribute_accuracy(shown, prompts),
        "probability": probability_of_the_stated(shown, prompts),
        "perceptual": [1000 * value for value in perceptual_distance(shown, full)],
        "gradient": [1000 * value for value in mean_gradient(shown)],
    }  # fmt: skip
