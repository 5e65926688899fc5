"""The search: trial by trial, resumable and shared; bad settings see two prompts, good ones all."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from ralu_cache.profiles.profile import COSTS
from ralu_cache.profiles.setting import Setting, read_setting
from ralu_cache.tune.bench import Bench, Bytes, Level, Run
from ralu_cache.tune.front import Measured, hopeless
from ralu_cache.tune.space import Space
from ralu_cache.tune.storage import give_back, give_back_orphans, own
from ralu_cache.tune.strips import save_strip

FEW = 2  # prompts that every setting sees
RESULT = "result"  # the attribute of a trial that holds it
TWICE = 100  # so many suggestions in a row that are known already end the search


@dataclass
class Search:
    """One process's part of a study. cost: what is minimised beside the loss. pictures: a folder for strips."""

    study: Study
    storage: BaseStorage
    space: Space
    bench: Bench
    pictures: Path
    cost: str = "seconds"
    twice: int = 0
    _known: dict[Setting, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"unknown cost {self.cost!r}; accepted: {', '.join(COSTS)}")

    @property
    def exhausted(self) -> bool:
        """True if the sampler has nothing new to suggest."""
        return self.twice >= TWICE

    def seed(self, seeds: list[dict[str, Any]]) -> None:
        """Have these parameters tried first, unless the study has them already."""
        for values in seeds:
            self.study.enqueue_trial(values, skip_if_exists=True)

    def record(self) -> None:
        """Make the full runs that are missing. What fails here is no setting's fault."""
        for chunk in tqdm(self.bench.chunks(FEW), desc="full runs", unit="call"):
            self.bench.reference(chunk)

    def step(self) -> Measured | None:
        """One trial; None if it failed. What was interrupted is given back for the next process to run."""
        give_back_orphans(self.study, self.storage)
        trial = self.study.ask()
        try:
            own(trial)
            return self._tried(trial)
        except KeyboardInterrupt:
            give_back(self.storage, trial)
            raise

    def _tried(self, trial: Trial) -> Measured | None:
        setting = self.space.suggest(trial)
        trials = measured(self.study)
        same = next((other for other in trials if other.setting == setting), None)
        self.twice = 0 if same is None else self.twice + 1
        found = same
        if same is None:
            try:
                found = self._measure(trial.number, setting, trials)
            except Exception as error:  # of any library below: out of memory, a refused setting; the study goes on
                self._failed(trial, setting, error)
                return None
        assert found is not None
        trial.set_user_attr(RESULT, _written(found))
        self.study.tell(trial, [found.loss, math.log2(max(found.share, 1e-6))])
        return found

    def _failed(self, trial: Trial, setting: Setting, error: Exception) -> None:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        trial.set_user_attr(RESULT, {"setting": setting.to_dict(), "error": told})
        self.study.tell(trial, state=TrialState.FAIL)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _measure(self, number: int, setting: Setting, trials: list[Measured]) -> Measured:
        losses: list[float] = []
        share = flops = math.nan
        levels, shown = tuple[Level, ...](), list[Bytes]()
        for chunk in self.bench.chunks(FEW):
            if not losses:
                yardstick = self.bench.yardstick(chunk)
                run = self.bench.run(setting, chunk)
                share, flops = self._share(run, yardstick * self.bench.reference(chunk).pace), run.flops
                levels = run.levels
            else:
                run = self.bench.run(setting, chunk)
            losses += self.bench.losses(run.pictures, chunk)
            shown.append(run.pictures)
            if FEW <= len(losses) < len(self.bench.subjects) and hopeless(losses, share, trials):
                return Measured(number, setting, tuple(losses), share, flops, False)
        save_strip(self.pictures / f"{number}.png", shown)
        return Measured(number, setting, tuple(losses), share, flops, True, levels)

    def _share(self, run: Run, full_seconds: float) -> float:
        """Of the full run's cost. Raises ValueError where FLOPs are wanted and not counted."""
        if self.cost == "seconds":
            return run.seconds / full_seconds
        if math.isnan(run.flops):
            raise ValueError("this model's FLOPs are not counted; search by seconds")
        return run.flops


def measured(study: Study) -> list[Measured]:
    """All trials that were measured, in their order, each setting once."""
    found: dict[Setting, Measured] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        one = _read(trial)
        found.setdefault(one.setting, one)
    return list(found.values())


def failures(study: Study) -> list[str]:
    """A line for each setting that failed."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [
        f"{read_setting(trial.user_attrs[RESULT]['setting']).told}: {trial.user_attrs[RESULT]['error']}"
        for trial in failed if RESULT in trial.user_attrs
    ]  # fmt: skip


def _written(one: Measured) -> Mapping[str, Any]:
    return {
        "setting": one.setting.to_dict(), "losses": [round(loss, 5) for loss in one.losses], "share": one.share,
        "flops": None if math.isnan(one.flops) else one.flops, "whole": one.whole, "measured_as": one.number,
        "levels": one.levels,
    }  # fmt: skip


def _read(trial: FrozenTrial) -> Measured:
    told = trial.user_attrs[RESULT]
    flops = math.nan if told["flops"] is None else float(told["flops"])
    return Measured(
        told["measured_as"], read_setting(told["setting"]), tuple(told["losses"]), float(told["share"]), flops,
        told["whole"], tuple((level[0], level[1], level[2], level[3]) for level in told["levels"]),
    )  # fmt: skip
