"""By likeness: what keeping a history over a transition gives, unguided and guided, by quantity and solver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.history.runs import FULL, Bench, Setting
from benchmarks.regime.pictures import Shelf
from ralu_cache import RALU, Forecast
from ralu_cache.quality.likeness import psnr

EXACT = 150  # steps of the run that stands for the exact trajectory
PLANS: dict[str, tuple[RALU | None, int, int | tuple[int, ...]]] = {
    "14 steps": (None, 14, 3),
    "20 steps": (None, 20, 3),
    "1+14 to 0.15": (RALU(steps=(1, 14), ends=(0.15, 1.0)), FULL, 3),
    "1+1+14 to 0.1, 0.2": (RALU(steps=(1, 1, 14), ends=(0.1, 0.2, 1.0), ratio=0.1), FULL, 3),
    "3+20 to 0.3": (RALU(steps=(3, 20), ends=(0.3, 1.0)), FULL, (1, 4)),
}
"""By name: the plan, the steps of the call, the interval of forecasts."""
SOLVED: dict[str, tuple[RALU | None, int]] = {
    "7 steps": (None, 7),
    "5 steps": (None, 5),
    "1+5 to 0.15": (RALU(steps=(1, 5), ends=(0.15, 1.0)), FULL),
    "1+1+5 to 0.1, 0.2": (RALU(steps=(1, 1, 5), ends=(0.1, 0.2, 1.0), ratio=0.1), FULL),
    "2+3+5 (ralu-7x)": (RALU.preset("ralu-7x"), FULL),
    "5+6+7 (ralu-4x)": (RALU.preset("ralu-4x"), FULL),
}
CARRIED = ("reset", "trend", "keep")
CURED = "1+14 to 0.15"
CURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a parabola through three nodes": ({}, {"order": 2}),
    "gap 0.3": ({}, {"gap": 0.3}),
    "gap 1": ({}, {"gap": 1.0}),
    "gap 1.5": ({}, {"gap": 1.5}),
    "damped 0.7": ({}, {"damping": 0.7}),
    "fine steps grow": ({}, {"interval": (1, 4)}),
    "tolerance 0.2": ({}, {"tolerance": 0.2}),
    "tolerance 0.4": ({}, {"tolerance": 0.4}),
    "bicubic lift": ({"lift": "bicubic"}, {}),
    "pixel lift": ({"lift": "pixel"}, {}),
    "levels early (shift 3.5)": ({"shifts": (3.5, 3.5)}, {}),
    "levels late (shift 1.8)": ({"shifts": (1.8, 1.8)}, {}),
    "z 2": ({"z": 2.0}, {}),
    "z 4": ({"z": 4.0}, {}),
    "gap 1, damped 0.7, shift 3.5": ({"shifts": (3.5, 3.5)}, {"gap": 1.0, "damping": 0.7}),
}
"""What might mend forecasts that guidance bends: by name, settings of the plan and of the policy."""


def forecasts() -> Iterator[Setting]:
    """Every third step computed, on plans with and without stages."""
    for plan, (spatial, steps, interval) in PLANS.items():
        for quantity in ("velocity", "clean"):
            for carried in CARRIED if spatial is not None else ("reset",):
                policy = Forecast(interval, quantity=quantity, transition=carried)
                parts = {"plan": plan, "solver": "euler", "quantity": quantity, "history": carried}
                name = f"{plan} forecast {quantity} {carried}"
                yield Setting(name, {"spatial": spatial, "temporal": policy}, steps, parts)
        policy = Forecast(interval, transition="keep")
        parts = {"plan": plan, "solver": "multistep", "quantity": "clean", "history": "keep"}
        yield Setting(
            f"{plan} forecast multistep", {"spatial": spatial, "temporal": policy, "solver": "multistep"}, steps, parts
        )


def solvers() -> Iterator[Setting]:
    """Every step computed: Euler, and multistep solvers that forget or keep."""
    for plan, (spatial, steps) in SOLVED.items():
        for solver in ("euler", "dpm", "multistep", "multistep:3"):
            for carried in ("reset", "keep") if spatial is not None and solver != "euler" else ("keep",):
                policy = Forecast(1, transition=carried)
                parts = {"plan": plan, "solver": solver, "quantity": "clean", "history": carried}
                options: dict[str, Any] = {"spatial": spatial, "temporal": policy, "solver": solver}
                yield Setting(f"{plan} {solver} {carried}", options, steps, parts)


def cures() -> Iterator[Setting]:
    """The plan `CURED` with its history kept, as it is and with each of `CURES`."""
    for cure, (spatial, policy) in {"as it is": ({}, {}), **CURES}.items():
        plan = RALU(**{"steps": (1, 14), "ends": (0.15, 1.0), **spatial})
        forecast = Forecast(**{"interval": (1, 3), "quantity": "clean", "transition": "keep", **policy})
        parts = {"plan": CURED, "cure": cure}
        yield Setting(f"{CURED} cure {cure}", {"spatial": plan, "temporal": forecast}, FULL, parts)


def measure(bench: Bench, shelf: Shelf, setting: Setting) -> dict[str, Any]:
    """A row: cost, and every picture's PSNR to the full run and to the exact one of its seed."""
    shown, cost = bench.draw(setting)
    full, exact = (shelf.pictures(bench.full(steps), bench.count) for steps in (FULL, EXACT))
    likeness = {name: np.minimum(psnr(shown, other), 100) for name, other in (("full", full), ("exact", exact))}
    return {"name": setting.name, "cost": cost, "parts": setting.parts, **likeness}
