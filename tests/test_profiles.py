"""Profiles as data, where they lie, and what `speedup=`, `max_loss=` and `profile=` make of them call by call."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ralu_cache import RALU, Guidance, accelerate
from ralu_cache.profiles import finding
from ralu_cache.profiles.facts import Facts, Model
from ralu_cache.profiles.finding import FILE, cached_file, find_profiles, place_for, shipped_file
from ralu_cache.profiles.profile import Front, Measure, Point, Profile, profile_from, read_profile
from ralu_cache.profiles.setting import Setting, read_setting
from tests.pipelines import HEIGHT, WIDTH, make_pipeline, make_sd3_pipeline, nothing_under_way, pictures
from tests.surroundings import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("home")

SLOW = Setting(RALU(steps=(4, 4), ends=(0.5, 1.0)))
MIDDLE = Setting(
    RALU(steps=(3, 1), ends=(0.6, 1.0), shifts=(3.3, 1.4), z=2.2), "taylorseer:2,order=1", None, "multistep"
)
FAST = Setting(RALU(steps=(2, 1), ends=(0.7, 1.0)), None, Guidance(early=True))
CALL = Facts(8, HEIGHT, WIDTH, None, 3.5, 2.5)
POINTS = (
    Point(1.5, 1.6, 1.0, 0.5, 1.5, SLOW),
    Point(3.0, 2.8, 4.0, 3.0, 5.0, MIDDLE),
    Point(5.0, 6.0, 9.0, 7.0, 11.0, FAST),
)


@pytest.fixture(scope="module")
def flux() -> Any:
    return make_pipeline()


def front(call: Facts = CALL, points: tuple[Point, ...] = POINTS, chosen: int = 1) -> Front:
    measure, where = Measure("distance", "distance", "‰", 4), {"dtype": "float32", "hardware": "a machine"}
    return Front(call, measure, points, chosen, "seconds", **where, versions={"torch": "2"})


def profile(pipe: Any, *fronts: Front) -> Profile:
    return Profile(Model.of(pipe), "tiny", fronts or (front(),))


def run(pipe: Any, **changes: Any) -> Any:
    return pipe(**pictures([0], true_cfg_scale=2.5, **changes)).images


def test_a_profile_survives_its_file(flux: Any, tmp_path: Path) -> None:
    one = profile(flux, front(), front(replace(CALL, steps=20)))
    one.save(tmp_path / "deep" / "p.json")
    assert read_profile(tmp_path / "deep" / "p.json") == one
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.json"]


@pytest.mark.parametrize("setting", [Setting(), SLOW, MIDDLE, FAST, Setting(guidance=Guidance(end=0.4, scale=3.0))])
def test_a_setting_survives_json(setting: Setting) -> None:
    assert read_setting(json.loads(json.dumps(setting.to_dict()))) == setting


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(schema=2), "schema is 2"),
        (lambda data: data.pop("model"), "lacks 'model'"),
        (lambda data: data.update(extra=1), "unknown 'extra'"),
        (lambda data: data.update(fronts=[]), "no fronts"),
        (lambda data: data.update(fronts={}), "fronts must be a list"),
        (lambda data: data["fronts"][0].update(points=[]), "no points"),
        (lambda data: data["fronts"][0].update(chosen=3), "chosen must be the index"),
        (lambda data: data["fronts"][0].update(cost="money"), "cost must be one of seconds, flops, got 'money'"),
        (lambda data: data["fronts"][0]["points"].reverse(), "from slow to fast"),
        (lambda data: data["fronts"][0]["points"][0].update(speedup=-1), "speedup must be a number above 0, got -1"),
        (lambda data: data["fronts"][0]["points"][0].update(loss="low"), "loss must be a finite number, got 'low'"),
        (lambda data: data["fronts"][0]["points"][0]["setting"].update(spatial={"steps": [0, 1]}), "steps"),
        (lambda data: data["fronts"][0]["points"][0]["setting"].update(temporal="magic"), "unknown temporal"),
        (lambda data: data["fronts"][0]["points"][0]["setting"].update(speed=1), "a setting has no 'speed'"),
        (lambda data: data["fronts"][0]["call"].update(steps="many"), "steps must be a positive number"),
    ],
)
def test_what_is_no_profile_is_refused_with_its_reason(flux: Any, change: Callable[[Any], Any], said: str) -> None:
    data = json.loads(json.dumps(profile(flux).to_dict()))
    assert profile_from(data) == profile(flux)
    change(data)
    with pytest.raises((TypeError, ValueError), match=said):
        profile_from(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}'])
def test_a_corrupt_file_is_refused_by_its_path_and_leaves_stock(flux: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "corrupt.json"
    path.write_text(text)
    before = type(flux)
    with pytest.raises(ValueError, match=r"corrupt\.json is no profile"):
        accelerate(flux, profile=path, speedup=2)
    assert type(flux) is before


def test_what_is_asked_for_is_had() -> None:
    for speed in (4.96, 2.8, 19.99, 10.0):
        point = replace(POINTS[0], speedup=speed, flop_ratio=speed + 1)
        assert front(points=(point,), chosen=0).with_speedup(point.asked) == point and speed - 0.1 < point.asked


def test_the_point_that_delivers() -> None:
    assert front().with_speedup(2.5).setting == MIDDLE
    assert front().with_loss(5.0).setting == MIDDLE
    with pytest.raises(ValueError, match=r"speedup=6 was not measured.*fastest is 5x, with a loss of 9"):
        front().with_speedup(6)
    with pytest.raises(ValueError, match=r"speedup=2.9 .*|fastest"):
        front(points=POINTS[:2]).with_speedup(2.9)  # 3x in time, 2.8x in FLOPs
    with pytest.raises(ValueError, match=r"max_loss=0.5 was not measured.*least is 1 .*above 1.5"):
        front().with_loss(0.5)


@pytest.mark.parametrize(
    ("wish", "promised", "steps"),
    [({"speedup": "2x"}, 2.0, 4), ({"max_loss": 100}, 5.0, 3), ({}, 2.8, 4), ({"speedup": 1.2}, 1.2, 8)],
)
def test_a_measured_setting_is_taken_and_promises_and_deliveries_are_told(
    flux: Any, wish: dict[str, Any], promised: float, steps: int
) -> None:
    with accelerate(flux, profile=profile(flux), **wish) as handle:
        run(flux)
        report = handle.report
    assert report.promised == promised and len(report.steps) == steps
    assert f"promised {promised:g}x, delivered {report.flop_ratio:.2f}x" in str(report)
    assert sum("measured on tiny" in notice for notice in report.notices) == 1
    assert report.to_dict()["promised"] == promised


def test_calls_of_one_pipeline_get_what_was_measured_for_each(flux: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Also where one reuses inside of the model and the other doesn't."""
    both = profile(flux, front(points=POINTS[1:2], chosen=0), front(replace(CALL, steps=12), POINTS[2:], 0))
    with accelerate(flux, profile=both) as handle:
        reports = []
        for steps in (8, 12, 8):
            run(flux, num_inference_steps=steps)
            reports.append(handle.report)
        stock = run(flux, num_inference_steps=10)
        assert handle.report is None
    first, second, third = reports
    assert first.caches and third.caches and not second.caches
    assert (first.solver, second.solver) == ("multistep", "euler")
    assert second.guided_steps == 2 and first.flops == third.flops
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("nothing was measured for a call with num_inference_steps=10" in text for text in warnings) == 1
    assert any("--steps 10" in text and "in full" in text for text in warnings)
    assert torch.equal(stock, run(flux, num_inference_steps=10))


@pytest.mark.parametrize("change", [{"num_inference_steps": 20}, {"height": 48}, {"true_cfg_scale": 6.0}])
def test_another_call_gets_the_familys_plan_and_says_so(flux: Any, change: dict[str, Any]) -> None:
    with accelerate(flux, speedup=2, profile=profile(flux)) as handle:
        flux(**(pictures([0], true_cfg_scale=2.5) | change))
        report = handle.report
    assert report.flop_ratio >= 2 and report.promised == 2
    assert any("nothing was measured for a call" in notice and "is for" in notice for notice in report.notices)
    assert any("measured on tiny-flux and tiny-sd3 alone" in notice for notice in report.notices)


def test_what_was_not_measured_so_fast_is_refused_at_the_call(flux: Any) -> None:
    with accelerate(flux, speedup=7, profile=profile(flux)):
        with pytest.raises(ValueError, match="the fastest is 5x"):
            run(flux)
        assert nothing_under_way(flux)


def test_a_profile_is_found_beside_the_model_and_in_the_cache_folder(flux: Any, tmp_path: Path, home: Path) -> None:
    pipe = make_pipeline()
    assert find_profiles(pipe) == [] and place_for(pipe) == cached_file(Model.of(pipe))
    cached = cached_file(Model.of(pipe))
    assert cached.is_relative_to(home)
    profile(pipe).save(cached)
    folder = tmp_path / "model"
    pipe.transformer.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text("{}")
    pipe.transformer.register_to_config(_name_or_path=str(folder / "transformer"))
    assert place_for(pipe) == folder / FILE
    profile(pipe).save(folder / FILE)
    assert [path for path, _ in find_profiles(pipe)] == [folder / FILE, cached]
    with accelerate(pipe, speedup=2) as handle:
        run(pipe)
        assert any(str(folder / FILE) in notice for notice in handle.report.notices)


def test_the_librarys_own_profile_is_asked_last(
    flux: Any, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "LIBRARY", tmp_path)
    shipped, cached = shipped_file(Model.of(flux)), cached_file(Model.of(flux))
    assert find_profiles(flux) == [] and shipped.parent == tmp_path / "profiles"
    for path in (shipped, cached):
        profile(flux).save(path)
    assert [path for path, _ in find_profiles(flux)] == [cached, shipped], "what a user tuned counts before it"


def test_a_profile_of_another_model_is_refused_by_name(flux: Any) -> None:
    other = make_sd3_pipeline()
    with pytest.raises(ValueError, match=r"profile of tiny, a FluxPipeline.*this is a StableDiffusion3Pipeline"):
        accelerate(other, profile=profile(flux), speedup=2)
    cached = cached_file(Model.of(other))
    profile(flux).save(cached)  # under a name that is not its own
    assert find_profiles(other) == []


def test_max_loss_without_a_profile_says_how_to_get_one(flux: Any) -> None:
    with pytest.raises(ValueError, match=r"max_loss=3 needs a profile.*ralu-cache tune"):
        accelerate(flux, max_loss=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_loss": -1}, "max_loss must be a number of at least 0"),
        ({"max_loss": True}, "max_loss must be"),
        ({"max_loss": float("nan")}, "max_loss must be"),
        ({"max_loss": 1, "speedup": 2}, "give one of them"),
        ({"max_loss": 1, "spatial": "ralu"}, "leave out spatial='ralu'"),
        ({"speedup": 2, "temporal": "teacache"}, "leave out temporal='teacache'"),
        ({"profile": "p.json", "guidance": "early"}, "leave out guidance='early'"),
    ],
)
def test_arguments_that_clash_are_refused(flux: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        accelerate(flux, **arguments)


def test_guidance_of_ones_own_asks_no_profile(flux: Any, home: Path) -> None:
    profile(flux).save(cached_file(Model.of(flux)))
    with accelerate(flux, speedup=2, guidance="early") as handle:
        run(flux)
        assert not any("measured on tiny at" in notice for notice in handle.report.notices)
        assert handle.report.guided_steps < len(handle.report.steps)


def test_facts_of_calls_match_where_what_was_measured_holds() -> None:
    assert CALL.matches(replace(CALL, true_cfg_scale=2.6)) and not CALL.matches(replace(CALL, true_cfg_scale=4.0))
    assert not CALL.matches(replace(CALL, frames=9)) and not CALL.matches(replace(CALL, width=WIDTH * 2))
    near, far = replace(CALL, steps=10), replace(CALL, steps=50, height=4 * HEIGHT)
    assert CALL.distance(CALL) == 0 < CALL.distance(near) < CALL.distance(far)
    assert CALL.flags == f"--steps 8 --height {HEIGHT} --width {WIDTH} --guidance-scale 3.5 --true-cfg-scale 2.5"
