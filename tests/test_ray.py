"""Sweeps and studies on Ray, whose start is shared: records, pictures and trials as here, though workers die.

The workers import this file, which is why it imports little.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from ralu_cache.profiles.profile import read_profile
from ralu_cache.quality.base import MetricInfo, Pictures
from ralu_cache.sweep import contenders
from ralu_cache.sweep.contenders import Prepared, register_contender
from ralu_cache.sweep.executors import run_here, run_on_ray
from ralu_cache.sweep.records import Batch, Record, Results, Setting, read_results
from ralu_cache.sweep.runner import run_sweep
from ralu_cache.tune import again, page
from ralu_cache.tune.run import Options, tune_with
from tests.pipelines import make_pipeline
from tests.studies import CALL, prompts, trials_of
from tests.sweep_bench import GRID, Bench, header, make_bench

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
SETTINGS, BATCHES = GRID.settings(), GRID.batches()
Key = tuple[Setting, Batch]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Contenders of a script: one that halves the steps, one that kills its process the first time it is used."""
    died = tmp_path / "died"

    @contextmanager
    def halved(pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
        yield Prepared(setting.steps // 2)

    def deadly(pipe: Any, setting: Setting, value: str) -> Any:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return halved(pipe, setting, value)

    monkeypatch.setattr(contenders, "CONTENDERS", {})
    register_contender("halved", halved)
    register_contender("deadly", deadly)


def sweep(out: Path, methods: list[str], executor: Any, **options: Any) -> tuple[Results, dict[Key, Pictures]]:
    kept: dict[Key, Pictures] = {}

    def keep(setting: Setting, batch: Batch, pictures: Pictures) -> None:
        kept[setting, batch] = pictures

    settings = [replace(SETTINGS[0], method=method) for method in methods]
    path = run_sweep(out, header(), settings, BATCHES, executor, rounds=1, keep=keep, **options)
    return read_results(path), kept


def by_key(results: Results) -> dict[Key, Record]:
    return {record.key: record for record in results.records}


@pytest.mark.usefixtures("registered")
def test_ray_gives_the_same_records_and_pictures_though_a_worker_dies(tmp_path: Path) -> None:
    sound = ["none", "halved", "ralu-7x+taylorseer:2"]
    expected, here = sweep(tmp_path / "here", sound, run_here(make_bench))
    results, there = sweep(tmp_path / "ray", [*sound[:2], "deadly", sound[2]], run_on_ray(make_bench, workers=2))
    found = by_key(results)
    assert len(results.records) == len(found) == 4 * len(BATCHES), "each once, before and after the death"
    (failed,) = (record for record in results.records if record.error is not None)
    assert failed.setting.method == "deadly" and "died" in failed.error and "\n" not in failed.error
    assert there.keys() == found.keys() - {failed.key} and here.keys() < there.keys()
    for key, wanted in by_key(expected).items():
        for name, values in wanted.metrics.items():
            assert found[key].metrics[name] == pytest.approx(values, abs=1e-4), name
        assert there[key] == pytest.approx(here[key], abs=1e-3)


def test_a_worker_that_never_starts_ends_the_sweep(tmp_path: Path) -> None:
    def make() -> Bench:
        raise ValueError("no such model")

    with pytest.raises(RuntimeError, match=r"no worker of Ray starts.*no such model"):
        sweep(tmp_path, ["none"], run_on_ray(make, workers=1))
    assert read_results(tmp_path / "results.jsonl").records == []


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
    monkeypatch.setattr(again, "candidates", lambda trials: [])  # which this process would look at
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
