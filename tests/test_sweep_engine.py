"""Sweeps: every task once, whatever happens; what fails is written down; what was killed goes on where it was."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ralu_cache import Guidance
from ralu_cache.engine.pipeline import handle_of
from ralu_cache.generate import Request
from ralu_cache.quality.base import Pictures
from ralu_cache.sweep import contenders
from ralu_cache.sweep.command import MakeBench
from ralu_cache.sweep.contenders import Prepared, prepare, register_contender, uncached
from ralu_cache.sweep.engine import tasks_of
from ralu_cache.sweep.executors import run_here
from ralu_cache.sweep.records import Batch, Record, Results, Setting, append, read_results
from ralu_cache.sweep.runner import run_sweep
from tests.surroundings import one_thread  # noqa: F401
from tests.sweep_bench import GRID, STEPS, Bench, header, make_bench

SETTINGS, BATCHES = GRID.settings(), GRID.batches()


@pytest.fixture(scope="module")
def bench() -> Bench:
    return make_bench()


def sweep(out: Path, bench: Bench, **options: Any) -> Results:
    given = {"settings": SETTINGS, "batches": BATCHES, "rounds": 1} | options
    return read_results(run_sweep(out, header(), executor=run_here(lambda: bench), **given))


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return sweep(tmp_path_factory.mktemp("sweep"), bench)


def same_table(found: Results, wanted: Results) -> None:
    """The same but for the clock, and for the rounding in which the same sums differ from process to process."""
    assert [(r.key, repr(r.flops), r.error) for r in found.records] == [
        (r.key, repr(r.flops), r.error) for r in wanted.records
    ]
    for one, other in zip(found.records, wanted.records, strict=True):
        assert one.metrics.keys() == other.metrics.keys() and one.features.keys() == other.features.keys()
        for name, values in other.metrics.items():
            assert one.metrics[name] == pytest.approx(values, abs=1e-4), name
        for name, rows in other.features.items():
            assert np.asarray(one.features[name]) == pytest.approx(np.asarray(rows), abs=1e-3), name


def test_every_task_is_run_once_batch_by_batch(whole: Results) -> None:
    assert [r.setting.method for r in whole.records[:5]] == [
        "none", "steps:3", "+taylorseer:2", "ralu-7x", "ralu-7x+taylorseer:2",
    ]  # fmt: skip
    assert [record.key for record in whole.records] == [(s, b) for b in BATCHES for s in SETTINGS]
    assert [record.error for record in whole.records] == [None] * len(whole.records)


def test_records_hold_what_was_measured(whole: Results) -> None:
    by_method = {record.setting.method: record for record in whole.records[:5]}
    for record in whole.records:
        timed = record.batch == BATCHES[0]
        assert record.seconds > 0 and math.isfinite(record.full_seconds) == timed
        assert all(len(values) == 2 for values in record.metrics.values())
        assert [len(row) for row in record.features["colour"]] == [3, 3]
    assert by_method["none"].metrics["distance"] == (0.0, 0.0)
    assert min(by_method["steps:3"].metrics["distance"]) > 0
    assert set(by_method["ralu-7x"].metrics) == {"brightness", "distance"}
    assert set(by_method["ralu-7x+taylorseer:2"].metrics) == {"brightness", "distance", "distance_uncached"}
    both, plan = by_method["ralu-7x+taylorseer:2"], by_method["ralu-7x"]
    assert both.flops < plan.flops < plan.full_flops == both.full_flops


def test_flops_of_the_full_run_do_not_depend_on_the_steps_asked(bench: Bench) -> None:
    tasks = [(Setting("ralu-7x", steps, 64, 64), False) for steps in (8, 4)]
    first, second = (outcome.record for outcome in bench.run(BATCHES[0], tasks))
    assert first.full_flops == pytest.approx(second.full_flops) and first.full_flops > 0


def test_a_negative_prompt_is_repeated_for_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    prompts = BATCHES[0].prompts
    made = MakeBench(Request("tiny-flux", [prompts[0]], "grey", device="cpu"), 2, prompts)()
    encode = made.pipe.encode_prompt
    monkeypatch.setattr(made.pipe, "encode_prompt", lambda **call: given.append(call["prompt"]) or encode(**call))
    list(made.run(BATCHES[0], [(Setting("none", 2, 64, 64), False)]))
    assert ["grey"] * len(prompts) in given


def test_a_picture_is_that_of_its_seed(bench: Bench, whole: Results) -> None:
    """The full run's brightness, by a call of the pipeline alone."""
    prompt, seed = BATCHES[1].prompts[1], BATCHES[1].seeds[1]
    image = bench.pipe(
        prompt, height=64, width=64, num_inference_steps=STEPS, max_sequence_length=16, output_type="np",
        generator=torch.Generator().manual_seed(seed),
    ).images[0]  # fmt: skip
    found = next(r for r in whole.records if r.key == (SETTINGS[0], BATCHES[1]))
    assert found.metrics["brightness"][1] == pytest.approx(float(image.mean()), abs=1e-5)


def test_what_fails_is_recorded_and_the_rest_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "CONTENDERS", {})

    def broken(pipe: Any, setting: Setting, value: str) -> Any:
        raise RuntimeError(f"no {value} here")

    register_contender("broken", broken)
    given = {"settings": [replace(SETTINGS[0], method="broken:cache"), SETTINGS[1]], "batches": BATCHES[:1]}
    results = sweep(tmp_path, bench, **given)
    assert [record.error for record in results.records] == ["RuntimeError: no cache here", None]
    again = sweep(tmp_path, bench, **given)
    assert len(again.records) == 2, "failures are not repeated by themselves"
    assert len(sweep(tmp_path, bench, **given, retry=True).records) == 3


def test_a_sweep_goes_on_where_it_was(bench: Bench, whole: Results, tmp_path: Path) -> None:
    assert len(sweep(tmp_path, bench, settings=SETTINGS[:3], seconds=0.0).records) == 1, "time was up after the first"
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"setting": {"method": "no')  # as a crash leaves it
    resumed = sweep(tmp_path, bench, settings=SETTINGS[:3])
    same_table(resumed, replace(whole, records=[r for r in whole.records if r.setting in SETTINGS[:3]]))


def test_a_killed_sweep_gives_the_same_table(bench: Bench, whole: Results, tmp_path: Path) -> None:
    """Killed in a process of its own, it goes on in this one."""
    path, kept = tmp_path / "results.jsonl", []

    def dies(*outcome: Any) -> None:
        kept.append(outcome)
        if len(kept) == 7:  # within the second batch
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        sweep(tmp_path, bench, keep=dies)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "killed before its end"
    left = path.read_text()
    assert left.endswith("\n") and left.count("\n") == 1 + 6 < 1 + len(whole.records)
    resumed = sweep(tmp_path, bench)
    assert path.read_text().startswith(left), "what was there stays as it was"
    same_table(resumed, whole)


def test_pictures_are_kept_before_their_record(bench: Bench, tmp_path: Path) -> None:
    """Those of a call that is recorded would not be made again."""
    path, kept = tmp_path / "results.jsonl", []

    def keep(setting: Setting, batch: Batch, pictures: Pictures) -> None:
        kept.append((setting, batch, pictures.shape, path.read_text().count("\n") - 1))

    sweep(tmp_path, bench, settings=SETTINGS[:2], keep=keep)
    keys = [(setting, batch) for batch in BATCHES for setting in SETTINGS[:2]]
    assert kept == [(*key, (2, 64, 64, 3), number) for number, key in enumerate(keys)]


def test_another_sweep_is_not_mixed_in(bench: Bench, tmp_path: Path) -> None:
    sweep(tmp_path, bench, settings=SETTINGS[:1], batches=BATCHES[:1])
    with pytest.raises(ValueError, match=f"was begun with full_steps {STEPS}, not 50"):
        run_sweep(tmp_path, header(full_steps=50), SETTINGS, BATCHES, run_here(lambda: bench))


def test_contenders_leave_the_pipeline_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "CONTENDERS", {})
    scheduler, kind = bench.pipe.scheduler, type(bench.pipe)
    with prepare(bench.pipe, replace(SETTINGS[0], method="ralu-7x+teacache")) as prepared:
        assert isinstance(prepared, Prepared) and handle_of(bench.pipe) is not None
        assert bench.pipe.scheduler is scheduler, "outside of a call it is the user's"
        with handle_of(bench.pipe).call():
            assert bench.pipe.scheduler is not scheduler
    assert bench.pipe.scheduler is scheduler and type(bench.pipe) is kind and handle_of(bench.pipe) is None
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in bench.pipe.transformer.modules())
    for name in ("", "a:b", "a+b"):
        with pytest.raises(ValueError, match="needs a name"):
            register_contender(name, lambda *_: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="'steps:0': steps must be a positive number"):
        prepare(bench.pipe, replace(SETTINGS[0], method="steps:0"))


def test_the_uncached_plan_of_a_setting() -> None:
    plans = {"ralu-7x+teacache:0.4": "ralu-7x", "ralu-7x": None, "+teacache": None, "steps:4": None, "none": None}
    plans |= {"+teacache+guidance=early": "+guidance=early", "ralu-7x+guidance=early": None, "+guidance=early": None}
    plans["ralu-7x+guidance=early:0.3+teacache"] = "ralu-7x+guidance=early:0.3"
    for method, plan in plans.items():
        found = uncached(replace(SETTINGS[0], method=method))
        assert (found.method if found else None) == plan


def test_guidance_is_passed_on(bench: Bench) -> None:
    with prepare(bench.pipe, replace(SETTINGS[0], method="ralu-7x+guidance=early")) as prepared:
        assert handle_of(bench.pipe)._parts.guidance == Guidance(early=True) and prepared.steps == SETTINGS[0].steps
    with prepare(bench.pipe, replace(SETTINGS[0], method="+guidance=early")):
        assert handle_of(bench.pipe)._parts.guidance == Guidance(early=True), "guidance alone is an acceleration"


def test_finished_tasks_are_left_out(tmp_path: Path) -> None:
    done = [Record(s, b, error="x" if s is SETTINGS[1] else None) for s in SETTINGS[:3] for b in BATCHES[:1]]
    assert [len(tasks) for _, tasks in tasks_of(SETTINGS, BATCHES, 1, done)] == [2, 5]
    assert [len(tasks) for _, tasks in tasks_of(SETTINGS, BATCHES, 1, done, retry=True)] == [3, 5]
    timed = [flag for _, tasks in tasks_of(SETTINGS, BATCHES, 1, []) for _, flag in tasks]
    assert timed == [True] * 5 + [False] * 5


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match="line 1: not the header of a sweep"):
        read_results(path)
    run_sweep(tmp_path / "new", header(), [], [], run_here(make_bench))
    append(tmp_path / "new" / "results.jsonl", [Record(SETTINGS[0], BATCHES[0])])
    with (tmp_path / "new" / "results.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match="line 3: not a sweep's record"):
        read_results(tmp_path / "new" / "results.jsonl")
