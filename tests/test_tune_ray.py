"""A study on Ray's workers: all trials are there, though a worker dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from ralu_cache.profiles.profile import read_profile
from ralu_cache.quality.base import MetricInfo
from ralu_cache.tune import page
from ralu_cache.tune.run import Options, tune_with
from tests.pipelines import make_pipeline
from tests.test_tune import CALL, prompts, trials_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


class Deadly:
    """A quality whose process dies the first time that it is asked in a worker."""

    info = MetricInfo("distance", "‰", higher=False)

    def __init__(self, died: Path) -> None:
        self.died, self.driver = died, os.getpid()
        self.__qualname__ = "Deadly"

    def __call__(self, shown: np.ndarray, references: np.ndarray, texts: Sequence[str]) -> list[float]:
        if os.getpid() != self.driver and not self.died.exists():
            self.died.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return [1000 * float(np.abs(a - b).mean()) for a, b in zip(shown, references, strict=True)]


def test_workers_share_a_study_and_one_that_dies_loses_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "write_page", lambda folder, *others: folder / "index.html")
    options = Options(
        CALL, 5.0, quality=Deadly(tmp_path / "died"), cost="flops", study=tmp_path, out=tmp_path / "p.json", trials=6,
        executor="ray", workers=2,
    )  # fmt: skip
    found = tune_with(make_pipeline(), prompts(2), options, make_pipeline)
    assert read_profile(found.path).fronts == (found.front,)
    trials = trials_of(tmp_path / "study.db")
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    owners = {int(trial.user_attrs["owner"].partition(":")[2]) for trial in trials if "owner" in trial.user_attrs}
    assert len(done) >= 6 and os.getpid() not in owners, "all were run by workers"
    assert int((tmp_path / "died").read_text()) not in owners, "its trial is another's now"
    results = [str(trial.user_attrs["result"]["setting"]) for trial in done]
    assert len(results) == len(set(results)), "no setting was tried twice"


def test_ray_needs_what_makes_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs make="):
        tune_with(make_pipeline(), prompts(2), Options(CALL, 1.0, cost="flops", study=tmp_path, executor="ray"))
    with pytest.raises(ValueError, match="unknown executor 'dask'; accepted: local, ray"):
        Options(CALL, 1.0, executor="dask")
