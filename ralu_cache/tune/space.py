"""The space that the planner searches: stages, their steps and levels, guidance, reuse and solver, all jointly.

A trial suggests parameters by name, as Optuna does; here they become a `Setting`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.spatial import RALU
from ralu_cache.profiles.setting import Setting

TEMPORAL = ("none", "forecast", "taylorseer", "teacache", "seacache")
SOLVERS = ("euler", "multistep", "dpm")
SCORERS = ("latent-gradient", "sobel")
MOST_COARSE, MOST_MIXED, MOST_FINE = 16, 6, 10
"""Steps of a stage: what more of them add costs more than it gives."""
LEVELS = {"coarse": (1.0, 8.0), "mixed": (0.7, 6.0), "fine": (0.5, 4.0), "plain": (0.7, 8.0)}
"""Between which the shift of a stage is searched; about 3 is what released models have themselves."""


class Trial(Protocol):
    """What suggests; `optuna.Trial` is one."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Space:
    """What may be suggested for calls of so many `steps`.

    guided: whether the call computes classifier-free guidance, so that it can be left out. stages: how many, 1 being
    plain steps on levels of their own. temporal, solvers, scorers: by name; scorers only matter with three stages.
    scales: (lowest, highest) guidance scale, where the user allows another than the call's.
    """

    steps: int
    guided: bool = False
    stages: tuple[int, ...] = (1, 2, 3)
    temporal: tuple[str, ...] = TEMPORAL
    solvers: tuple[str, ...] = SOLVERS
    scorers: tuple[str, ...] = SCORERS
    scales: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"num_inference_steps={self.steps} can't be made fewer; at least 2 are needed")
        if not self.stages or not set(self.stages) <= {1, 2, 3}:
            raise ValueError(f"stages must be some of 1, 2 and 3, got {self.stages!r}")
        if self.scales is not None and not 0 <= self.scales[0] < self.scales[1]:
            raise ValueError(f"guidance scales must be (lowest, highest), got {self.scales!r}")

    def suggest(self, trial: Trial) -> Setting:
        """The setting that a trial's parameters mean."""
        stages = trial.suggest_categorical("stages", self.stages)
        plan = self._plain(trial) if stages == 1 else self._staged(trial, stages)
        return Setting(plan, self._temporal(trial), self._guidance(trial, stages), self._solver(trial))

    def _plain(self, trial: Trial) -> RALU:
        steps = trial.suggest_int("plain_steps", 1, self.steps, log=True)
        return RALU(steps=(steps,), ends=(1.0,), shifts=self._shifts(trial, ("plain",)))

    def _staged(self, trial: Trial, stages: int) -> RALU:
        kinds = ("coarse", "fine") if stages == 2 else ("coarse", "mixed", "fine")
        most = {"coarse": MOST_COARSE, "mixed": MOST_MIXED, "fine": MOST_FINE}
        steps = tuple(trial.suggest_int(f"{kind}_steps", 1, min(most[kind], self.steps)) for kind in kinds)
        end = trial.suggest_float("coarse_end", 0.1, 0.9, step=0.01)
        ends, ratio, scorer = list[float]([end]), 0.3, "latent-gradient"
        if stages == 3:
            further = trial.suggest_float("mixed_end", 0.1, 0.8, step=0.05)  # a share of the way that is left
            ends.append(round(end + further * (1 - end), 3))
            ratio = trial.suggest_float("ratio", 0.1, 0.6, step=0.05)
            scorer = trial.suggest_categorical("scorer", self.scorers)
        noise = trial.suggest_categorical("noise", ("rewind", "paper"))
        start = trial.suggest_categorical("start", ("pooled", "subsampled"))
        lift = "nearest"  # which the paper's noise is defined for alone
        if noise == "rewind":
            lift = trial.suggest_categorical("lift", ("nearest", "bicubic"))
        z = round(trial.suggest_float("z", 1.5, 8.0, log=True), 3)
        return RALU(
            steps=steps, ends=(*ends, 1.0), shifts=self._shifts(trial, kinds), ratio=ratio, regions=scorer,
            z=z if noise == "rewind" else max(z, 2.0), noise=noise, start=start, lift=lift,
        )  # fmt: skip

    def _shifts(self, trial: Trial, kinds: Sequence[str]) -> tuple[float, ...] | str:
        if trial.suggest_categorical("levels", ("own", "model")) == "model":
            return "model"
        return tuple(round(trial.suggest_float(f"{kind}_shift", *LEVELS[kind], log=True), 3) for kind in kinds)

    def _guidance(self, trial: Trial, stages: int) -> Guidance | None:
        if not self.guided:
            return None
        where = ("all", "until") if stages == 1 else ("all", "until", "coarse")
        chosen = trial.suggest_categorical("guided" if stages > 1 else "plain_guided", where)
        scale = None if self.scales is None else round(trial.suggest_float("scale", *self.scales), 2)
        if chosen == "coarse":
            return Guidance(early=True, scale=scale)
        end = trial.suggest_float("guided_until", 0.1, 0.95, step=0.05) if chosen == "until" else 1.0
        return None if end == 1 and scale is None else Guidance(end=round(end, 2), scale=scale)

    def _temporal(self, trial: Trial) -> str | None:
        name = trial.suggest_categorical("temporal", self.temporal)
        if name == "forecast":
            interval = trial.suggest_int("interval", 2, 5)
            order = trial.suggest_int("order", 0, 2)
            return f"forecast:{interval},order={order},quantity={trial.suggest_categorical('quantity', QUANTITIES)}"
        if name == "taylorseer":
            return f"taylorseer:{trial.suggest_int('interval', 2, 5)},order={trial.suggest_int('order', 0, 2)}"
        if name in ("teacache", "seacache"):
            return f"{name}:{trial.suggest_float('threshold', 0.05, 1.0, log=True):.3g}"
        return None if name == "none" else str(name)

    def _solver(self, trial: Trial) -> str | None:
        name = trial.suggest_categorical("solver", self.solvers)
        return None if name == "euler" else str(name)


QUANTITIES = ("velocity", "clean")


@dataclass(frozen=True)
class Given:
    """A trial whose parameters are known. Raises KeyError for one that is asked and not there."""

    values: dict[str, Any]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(min(max(self.values[name], low), high))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(min(max(self.values[name], low), high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if self.values[name] not in choices:
            raise KeyError(name)
        return self.values[name]
