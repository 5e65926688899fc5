"""The study's storage: a file or a server, what the study in it is of, and trials that a killed process left."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna import Study, create_study
from optuna.exceptions import ExperimentalWarning
from optuna.logging import WARNING, set_verbosity
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

NAME = "ralu-cache tune"
SAMPLERS = ("tpe", "nsga2")
MADE, OWNER = "made", "owner"  # attributes of the study and of a trial
UNOWNED = timedelta(seconds=10)  # a trial without an owner is as old as this only if its process was killed


def open_storage(where: str | Path) -> BaseStorage:
    """A URL ("postgresql://..."), a journal ("study.log"), or an SQLite file of any other name; made if missing."""
    text = str(where)
    if "://" in text:
        return RDBStorage(text)
    path = Path(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".log", ".journal"):
        return JournalStorage(JournalFileBackend(text, lock_obj=JournalFileOpenLock(text)))
    return RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": 100}})


def open_study(storage: BaseStorage, where: str, made: Mapping[str, Any], sampler: str, seed: int | None) -> Study:
    """The study in it, which several processes may share; begun if there is none.

    made: what it is of. Raises ValueError, naming what differs, for a study of anything else.
    """
    study = create_study(
        storage=storage, sampler=_sampler(sampler, seed), study_name=NAME, directions=["minimize", "minimize"],
        load_if_exists=True,
    )  # fmt: skip
    there = study.user_attrs.get(MADE)
    if there is None:
        study.set_user_attr(MADE, dict(made))
        return study
    if differing := [name for name in made if there.get(name) != made[name]]:
        name = differing[0]
        raise ValueError(
            f"{where} is a study with {name} {there.get(name)!r}, not {made[name]!r}; give another --study folder or "
            "storage, or the same options as before"
        )
    return study


def _sampler(name: str, seed: int | None) -> BaseSampler:
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; accepted: {', '.join(SAMPLERS)}")
    if name == "nsga2":
        return NSGAIISampler(population_size=24, seed=seed)
    return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=16, seed=seed)


def own(trial: Trial) -> None:
    """Note who runs it."""
    trial.set_user_attr(OWNER, f"{socket.gethostname()}:{os.getpid()}")


def give_back(storage: BaseStorage, trial: Trial | FrozenTrial) -> None:
    """Let it be run again, by whoever asks next, with the parameters that it has."""
    storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def give_back_orphans(study: Study, storage: BaseStorage) -> int:
    """Give back the trials of processes of this machine that are gone. Returns how many there were."""
    orphans = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if _orphaned(trial)]
    for trial in orphans:
        give_back(storage, trial)
    return len(orphans)


def _orphaned(trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get(OWNER)
    if owner is None:  # killed between two writes
        return trial.datetime_start is not None and datetime.now() - trial.datetime_start > UNOWNED
    host, _, process = str(owner).rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def quiet() -> None:
    """Optuna tells every trial, and which of its features may change; the progress bar tells what matters."""
    set_verbosity(WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
