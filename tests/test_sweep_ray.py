"""A sweep on Ray: records and pictures as here, the script's contenders; workers that die, or never start."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ralu_cache.quality.base import Pictures
from ralu_cache.sweep import contenders
from ralu_cache.sweep.contenders import Prepared, register_contender
from ralu_cache.sweep.executors import run_here, run_on_ray
from ralu_cache.sweep.records import Batch, Record, Results, Setting, read_results
from ralu_cache.sweep.runner import run_sweep
from tests.sweep_bench import GRID, Bench, header, make_bench

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
SETTINGS, BATCHES = GRID.settings(), GRID.batches()
Key = tuple[Setting, Batch]


@pytest.fixture(autouse=True)
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
