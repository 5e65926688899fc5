"""The planner at work on tiny random pipelines: a profile, a page, a study that survives whatever happens to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from optuna.trial import TrialState

from ralu_cache import accelerate
from ralu_cache.app.results import find_results, open_front
from ralu_cache.engine.pipeline import handle_of
from ralu_cache.profiles.facts import Model
from ralu_cache.profiles.finding import cached_file, find_profiles
from ralu_cache.profiles.profile import read_profile
from ralu_cache.quality.base import MetricInfo
from ralu_cache.tune import again, page, tune
from ralu_cache.tune.bench import Bench
from ralu_cache.tune.run import Options, tune_with
from ralu_cache.tune.search import Search
from tests.pipelines import make_pipeline, make_sd3_pipeline, pictures
from tests.studies import CALL, prompts, trials_of
from tests.surroundings import one_thread  # noqa: F401
from tests.wan_pipelines import make_wan_pipeline, videos

pytestmark = pytest.mark.usefixtures("home")

FEW = {"minutes": 30.0, "trials": 3, "cost": "flops"}  # more minutes than it ever takes, however busy the machine


def distance(shown: np.ndarray, references: np.ndarray, prompts: Sequence[str]) -> list[float]:
    return [1000 * float(np.abs(a - b).mean()) for a, b in zip(shown, references, strict=True)]


distance.info = MetricInfo("distance", "‰", higher=False)
GIVEN = {"quality": distance} | FEW


@pytest.fixture(scope="module")
def flux() -> Any:
    return make_pipeline()


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search alone: no figures and no second look, which take longer than a few trials."""
    monkeypatch.setattr(page, "front_figure", lambda *_: "")
    monkeypatch.setattr(page, "plans_figure", lambda *_: "")
    monkeypatch.setattr(again, "candidates", lambda trials: [])


def states(where: Path) -> list[str]:
    return [trial.state.name for trial in trials_of(where) if trial.state is not TrialState.WAITING]


@pytest.fixture(scope="module")
def tuned(flux: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study of six trials that went well."""
    folder = tmp_path_factory.mktemp("study")
    given = GIVEN | {"trials": 6, "study": folder, "out": folder / "p.json", "name": "a tiny one"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "ENOUGH", 6)
        return tune(flux, prompts(3), CALL, **given)


def test_what_was_found_is_a_profile_that_accelerate_takes(flux: Any, tuned: Any) -> None:
    profile = read_profile(tuned.path)
    assert profile == tuned.profile and profile.name == "a tiny one" and profile.model == Model.of(flux)
    (front,) = profile.fronts
    assert (front.call.steps, front.call.height, front.call.width, front.call.true_cfg_scale) == (8, 32, 48, 2.5)
    assert front.measure.prompts == 3 and front.measure.unit == "‰" and front.dtype == "float32"
    fastest = max(front.points, key=lambda point: point.delivers)
    with accelerate(flux, speedup=0.99 * fastest.delivers, profile=tuned.path) as handle:
        flux(**(pictures([0]) | CALL))
        assert handle.report.flop_ratio == pytest.approx(fastest.flop_ratio, rel=0.01)
    with pytest.raises(ValueError, match="the fastest is"), accelerate(flux, speedup=200, profile=tuned.path):
        flux(**(pictures([0]) | CALL))


def test_seeds_are_tried_first_and_bad_settings_see_two_prompts(tuned: Any) -> None:
    done = [trial for trial in trials_of(tuned.path.parent / "study.db") if trial.state is TrialState.COMPLETE]
    assert len(done) == 6 and done[0].params["coarse_steps"] == 8
    results = [trial.user_attrs["result"] for trial in done]
    assert {len(result["losses"]) for result in results} == {2, 3}
    assert all((len(result["losses"]) == 3) == result["whole"] for result in results)


def test_the_page_holds_figures_pictures_and_what_mattered(tuned: Any) -> None:
    page = tuned.page.read_text()
    assert page.count("<svg") == 3 and page.count("data:image/png") > 1
    assert "a tiny one" in page and "What mattered" in page and "num_inference_steps=8" in page
    assert 'class="taken"' in page and "nan" not in page.partition("<svg")[0]


def test_the_app_looks_through_it(tuned: Any) -> None:
    """A point that is clicked has its loss with interval, and the pictures that were kept of it."""
    folder = tuned.page.parent
    ((_, file),) = find_results([folder]).items()
    front, points = open_front(file), tuned.front.points
    assert front.names == [point.setting.told for point in points] and front.metrics[0][1] == front.metric
    for place, (x, y) in enumerate(front.points.pixels):
        assert front.names[front.points.nearest(x, y)] == front.names[place]
        assert f"{points[place].speedup:.3g}x fewer FLOPs, loss {points[place].loss:.3g}" in front.told(place)
    assert [path for path, _ in front.full()] == [folder / "pictures/full.png"]
    assert any(map(front.pictures, range(len(points))))
    file.with_name("points.json").write_text("{}")
    with pytest.raises(ValueError, match="no points of a study"):
        open_front(file)


@pytest.mark.usefixtures("searched")
def test_a_study_goes_on_and_adds_to_the_profile(flux: Any, tuned: Any) -> None:
    folder = tuned.path.parent
    references = {path: path.stat().st_mtime_ns for path in (folder / "references").iterdir()}
    tune(flux, prompts(3), CALL, **(GIVEN | {"trials": 1}), study=folder, out=tuned.path, name="a tiny one")
    assert len(states(folder / "study.db")) == 7
    assert references == {path: path.stat().st_mtime_ns for path in (folder / "references").iterdir()}, "run once"
    other = CALL | {"num_inference_steps": 6}
    found = tune(flux, prompts(2), other, **(GIVEN | {"trials": 2}), study=folder / "six", out=tuned.path)
    assert [front.call.steps for front in found.profile.fronts] == [8, 6]


def test_what_another_study_adds_meanwhile_stays(flux: Any, tuned: Any, tmp_path: Path, searched: None) -> None:
    """Two are tuned for at once, of one model: their fronts go into one file."""
    (front, *_) = tuned.profile.fronts
    other = replace(front, call=replace(front.call, steps=12))
    path = tmp_path / "p.json"

    def judged(*given: Any) -> list[float]:
        if not path.exists():
            replace(tuned.profile, fronts=(other,)).save(path)
        return distance(*given)

    judged.info = distance.info
    given = GIVEN | {"trials": 1, "quality": judged, "study": tmp_path, "out": path}
    found = tune(flux, prompts(), CALL, **given, storage=str(tmp_path / "study.log"))
    assert read_profile(path).fronts == found.profile.fronts == (other, found.front)


def test_the_pipeline_is_stock_afterwards(flux: Any, tuned: Any) -> None:
    assert handle_of(flux) is None
    assert not flux.transformer._forward_hooks and not flux.transformer._forward_pre_hooks


@pytest.mark.usefixtures("searched")
def test_without_a_name_it_goes_into_the_users_cache_folder_and_is_found(tmp_path: Path) -> None:
    pipe = make_sd3_pipeline()
    call = {"height": 32, "width": 48, "num_inference_steps": 8, "guidance_scale": 2.5}
    found = tune(pipe, prompts(2), call, **GIVEN, study=tmp_path / "study", storage=str(tmp_path / "study.log"))
    assert found.path == cached_file(Model.of(pipe)) and [path for path, _ in find_profiles(pipe)] == [found.path]
    best = found.front.points[found.front.chosen]
    with accelerate(pipe, max_loss=best.high) as handle:
        pipe(**(pictures([0]) | call))
        assert handle.report.promised >= best.delivers
    assert len(states(tmp_path / "study.log")) == 3


@pytest.mark.usefixtures("searched")
def test_videos(tmp_path: Path) -> None:
    pipe = make_wan_pipeline()
    one = videos([0])
    names = [name for name in one if name.endswith("embeds")]
    call = {n: v for n, v in one.items() if n not in (*names, "generator", "output_type")} | {"guidance_scale": 2.5}
    subjects = [{name: videos([number])[name] for name in names} for number in range(2)]
    given = GIVEN | {"trials": 1, "storage": str(tmp_path / "study.log")}
    found = tune(pipe, subjects, call, **given, study=tmp_path)
    assert found.front.call.frames == call["num_frames"] and found.page.exists()


def failing(setting: Any) -> bool:
    return setting.spatial is not None and setting.spatial.steps == (8, 2)


@pytest.mark.usefixtures("searched")
def test_a_setting_that_fails_fails_alone(flux: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Bench.run

    def out_of_memory(self: Bench, setting: Any, chunk: range) -> Any:
        if failing(setting):
            with accelerate(self.pipe, **setting.arguments):
                raise torch.OutOfMemoryError("out of memory: tried to allocate 20 GiB")
        return run(self, setting, chunk)

    monkeypatch.setattr(Bench, "run", out_of_memory)
    where = tmp_path / "study.log"
    found = tune(flux, prompts(), CALL, **GIVEN, study=tmp_path, storage=str(where), out=tmp_path / "p.json")
    assert states(where) == ["COMPLETE", "FAIL", "FAIL"]
    assert not any(failing(point.setting) for point in found.front.points)
    assert "out of memory: tried to allocate 20 GiB" in found.page.read_text()
    assert handle_of(flux) is None


@pytest.mark.usefixtures("searched")
def test_interrupted_it_ends_with_what_was_found_and_goes_on(
    flux: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, calls = Bench.run, []

    def interrupted(self: Bench, setting: Any, chunk: range) -> Any:
        calls.append(setting)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(self, setting, chunk)

    monkeypatch.setattr(Bench, "run", interrupted)
    where = tmp_path / "study.log"
    given = GIVEN | {"study": tmp_path, "storage": str(where), "out": tmp_path / "p.json"}
    found = tune(flux, prompts(), CALL, **(given | {"trials": 9}))
    assert "interrupted after 2 trials" in caplog.text and found.page.exists() and found.front.points
    before = states(where)
    assert before == ["COMPLETE", "COMPLETE"], "the third waits to be run again"
    monkeypatch.setattr(Bench, "run", run)
    tune(flux, prompts(), CALL, **(given | {"trials": 1}))
    done = [trial for trial in trials_of(where) if trial.state is TrialState.COMPLETE]
    assert [trial.number for trial in done] == [0, 1, 2]


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("file", ["study.db", pytest.param("study.log", marks=pytest.mark.slow)])
def test_killed_it_goes_on_without_a_trial_lost_or_run_twice(flux: Any, tmp_path: Path, file: str) -> None:
    where, asked = tmp_path / file, []

    def dies(shown: np.ndarray, references: np.ndarray, texts: Sequence[str]) -> list[float]:
        asked.append(0)
        if len(asked) > 9:  # within the third trial
            os.kill(os.getpid(), signal.SIGKILL)
        return distance(shown, references, texts)

    dies.info, dies.__name__ = distance.info, "distance"
    given = {"study": tmp_path, "storage": str(where), "out": tmp_path / "p.json"}
    child = os.fork()
    if child == 0:
        tune(flux, prompts(), CALL, **(GIVEN | {"quality": dies}), **given)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "killed before its end"
    before = trials_of(where)
    running = [trial for trial in before if trial.state is TrialState.RUNNING]
    done = {trial.number: trial for trial in before if trial.state is TrialState.COMPLETE}
    assert len(running) == 1 and len(done) == 2 and not (tmp_path / "p.json").exists()
    tune(flux, prompts(), CALL, **(GIVEN | {"trials": 2}), **given)
    after = {trial.number: trial for trial in trials_of(where) if trial.state is TrialState.COMPLETE}
    assert sorted(after) == [0, 1, 2, 3] and after[running[0].number].params == running[0].params
    assert all(after[number].datetime_complete == trial.datetime_complete for number, trial in done.items())
    assert len({str(trial.params) for trial in after.values()}) == 4


@pytest.mark.usefixtures("searched")
def test_processes_share_a_study(flux: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two searches that run in turns, each on a connection of its own, never run the same trial."""
    step, others = Search.step, []

    def in_turns(self: Search) -> Any:
        if not others:
            others.append(None)
            tune(flux, prompts(), CALL, **(GIVEN | {"trials": 2}), study=tmp_path, out=tmp_path / "q.json")
        return step(self)

    monkeypatch.setattr(Search, "step", in_turns)
    tune(flux, prompts(), CALL, **(GIVEN | {"trials": 2}), study=tmp_path, out=tmp_path / "p.json")
    done = trials_of(tmp_path / "study.db")[:4]
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert len({str(trial.params) for trial in done}) == 4


@pytest.mark.usefixtures("searched")
def test_a_study_of_another_model_or_call_is_refused_by_name(flux: Any, tmp_path: Path) -> None:
    tune(flux, prompts(), CALL, **(GIVEN | {"trials": 1}), study=tmp_path, out=tmp_path / "p.json")
    with pytest.raises(ValueError, match=r"study\.db is a study with model .*FluxPipeline.*not .*StableDiffusion3"):
        call = {name: value for name, value in CALL.items() if name != "true_cfg_scale"}
        tune(make_sd3_pipeline(), prompts(), call, **GIVEN, study=tmp_path, out=tmp_path / "q.json")
    with pytest.raises(ValueError, match="is a study with call"):
        tune(flux, prompts(), CALL | {"height": 64}, **GIVEN, study=tmp_path, out=tmp_path / "p.json")
    with pytest.raises(ValueError, match=r"p\.json is the profile of .*name another file"):
        tune(make_sd3_pipeline(), prompts(), call, **GIVEN, study=tmp_path / "other", out=tmp_path / "p.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"minutes": 1e-6}, r"minutes=1e-06 are too few: a full run of 8 steps takes about .* seconds; two"),
        ({"minutes": 0}, "minutes must be a number above 0"),
        ({"call": {"prompt": "a"}}, "'prompt' is given by the planner itself"),
        ({"call": {"sharpness": 2}}, "FluxPipeline takes no sharpness"),
        ({"call": CALL | {"num_inference_steps": 1}}, "num_inference_steps=1"),
        ({"prompts": []}, "prompts must be at least one text"),
        ({"quality": "beauty"}, "unknown quality"),
        ({"target": "both"}, "unknown target"),
        ({"cost": "money"}, "unknown cost"),
        ({"sampler": "grid"}, "unknown sampler"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_it_begins(flux: Any, tmp_path: Path, given: dict[str, Any], said: str) -> None:
    arguments = {"prompts": prompts(), "call": CALL, "study": tmp_path, "out": tmp_path / "p.json"} | GIVEN | given
    with pytest.raises(ValueError, match=said):
        tune(flux, **arguments)
    assert not (tmp_path / "p.json").exists() and not (tmp_path / "pictures").exists()
    assert handle_of(flux) is None


def test_a_pipeline_without_stages_is_refused_by_name(tmp_path: Path) -> None:
    pipe = make_pipeline()
    pipe.scheduler = EulerDiscreteScheduler()
    with pytest.raises(TypeError, match="EulerDiscreteScheduler"):
        tune(pipe, prompts(), CALL, **GIVEN, study=tmp_path, out=tmp_path / "p.json")
    assert handle_of(pipe) is None


def test_a_corrupt_profile_is_refused_before_anything_is_tried(flux: Any, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(ValueError, match=r"p\.json is no profile"):
        tune(flux, prompts(), CALL, **GIVEN, study=tmp_path, out=tmp_path / "p.json")
    assert (tmp_path / "p.json").read_text() == "{}"


@pytest.mark.usefixtures("searched")
def test_few_minutes_take_few_prompts(flux: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = GIVEN | {"minutes": 0.02, "trials": 1, "storage": str(tmp_path / "study.log")}
    found = tune(flux, prompts(40), CALL, **given, study=tmp_path)
    assert 2 <= found.front.measure.prompts < 40 and "of 40 prompts are used" in caplog.text


def test_without_optuna_it_says_what_to_install(flux: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("ralu_cache.tune.storage")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'ralu-cache\[tune\]'"):
        tune(flux, prompts(), CALL, **GIVEN, study=tmp_path)


def test_ray_needs_what_makes_a_pipeline(flux: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs make="):
        tune_with(flux, prompts(), Options(CALL, 1.0, quality=distance, cost="flops", study=tmp_path, executor="ray"))
    with pytest.raises(ValueError, match="unknown executor 'dask'; accepted: local, ray"):
        Options(CALL, 1.0, executor="dask")
