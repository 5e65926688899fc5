"""The benchmark of the planner: what it reports of rows, without drawing anything."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.regime.setting import load
from benchmarks.regime.settings import FOUND, strong
from benchmarks.tune import ship, study
from benchmarks.tune.lines import KINDS, OTHERS, PLAIN, TUNED, Line, kind_of, lines_of
from benchmarks.tune.search import call_of
from benchmarks.tune.study_page import area, best_at, plot, table
from ralu_cache.profiles.facts import Facts, Model, with_defaults
from ralu_cache.profiles.finding import shipped_file
from ralu_cache.profiles.profile import Front, Measure, Point, Profile, read_profile
from ralu_cache.profiles.setting import Setting
from tests.pipelines import make_pipeline


def row(start: int, name: str, ratio: float, probability: float, train: float | None = None) -> dict[str, Any]:
    values = {key: [probability, probability + 2.0] for key in study.JUDGED}
    high = None if train is None else train + 1
    return {"start": start, "setting": name, "ratio": ratio, "train": train, "high": high} | values


ROWS = [
    *(row(start, "full", 1.0, 90.0) for start in (0, 16)),
    *(row(start, "tuned", 8.0, 89.0, 0.5) for start in (0, 16)),
    *(row(start, "overfit", 20.0, 80.0, -1.0) for start in (0, 16)),
    row(0, "unfinished", 9.0, 90.0, 0.1),
]  # fmt: skip


@pytest.fixture
def tuned() -> list[Line]:
    return lines_of(ROWS, {}, {0, 16})


def test_a_setting_counts_once_all_batches_have_it(tuned: list[Line]) -> None:
    assert [line.name for line in tuned] == ["tuned", "overfit"]
    assert tuned[0].lost["probability"].value == 1.0 and tuned[0].train == 0.5
    assert np.array_equal(tuned[0].values["attributes"], [89.0, 91.0, 89.0, 91.0])


def test_tuned_settings_are_chosen_by_their_own_prompts_and_others_by_the_reported(tuned: list[Line]) -> None:
    assert best_at(tuned, 6, by_train=True).name == "overfit"
    assert best_at(tuned, 6, by_train=False).name == "tuned"
    assert best_at(tuned, 30, by_train=True) is None


def test_the_area_is_of_what_was_reported(tuned: list[Line]) -> None:
    assert area([]) == 0 and area(tuned) == area(tuned[:1]) == pytest.approx(0.9 * np.log(8) / np.log(32))


def test_the_page_tells_both(tuned: list[Line], tmp_path: Path) -> None:
    plain = lines_of(ROWS[:4], {"tuned": PLAIN}, {0, 16})
    page = table("tiny-flux", tuned, plain, 32)
    assert "| 20x | 20.0x: overfit | +10.0 (+10.0 to +10.0) | – |  |" in page
    assert "| 6x | 20.0x: overfit | +10.0 (+10.0 to +10.0) | 8.0x: tuned | +1.0 (+1.0 to +1.0) | +9.0 (" in page
    assert "| 8.0x | tuned | tuned | +0.50 | +1.0 (+1.0 to +1.0) |" in page
    assert "| at least | tuned | plain steps |" in page and "| 8x | 81 ± 1 | 90 ± 1 |" in page
    plot(tuned, plain, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000


def test_what_left_the_front_goes_and_what_stays_has_its_new_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(temporal="teacache:0.2")
    points = (Point(2, 2, 0.7, 0, 1.2, setting),)
    front = Front(Facts(steps=50), Measure("m", "m"), points)
    profile = Profile(Model("a", "b", "c"), "tiny", (front,))
    old = [row(0, name, 1.0, 90.0) for name in ("full", "left", setting.told)]
    (tmp_path / "rows").write_text("".join(study._line(each) for each in old))
    monkeypatch.setattr(study, "load", lambda model: None)
    study.run("tiny-flux", profile, 16, tmp_path / "rows")
    full, kept = study.rows_of(tmp_path / "rows")
    assert full == old[0] and kept == old[2] | {"train": 0.7, "high": 1.2}


def test_every_setting_of_the_regime_is_of_a_kind() -> None:
    kinds = {setting.name: kind_of(setting) for setting in strong("tiny-flux", FOUND["tiny-flux"])}
    assert set(kinds.values()) == set(KINDS) - {TUNED}
    assert kinds["MagCache 0.3"] == kinds["Spectrum, reimplemented"] == OTHERS
    assert kinds["8 plain steps, guided until t = 0.4"] == PLAIN


def test_a_shipped_profile_gets_a_front_for_each_call_and_no_call_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, asked = make_pipeline(), []

    def tuned(pipe: Any, prompts: Any, call: dict[str, Any], minutes: float, **options: Any) -> Any:
        asked.append((call["num_inference_steps"], call["true_cfg_scale"]))
        steps, scale = call["num_inference_steps"], call["true_cfg_scale"]
        facts = Facts(steps, call["height"], call["width"], None, 3.5, scale)  # the pipeline's own, as `tune` does
        front = Front(facts, Measure("m", "m"), (Point(2, 2, 0, 0, 0, Setting()),))
        path = options["out"]
        before = read_profile(path) if path.exists() else Profile(Model.of(pipe), "tiny", (front,))
        before.adding(front).save(path)
        return front

    monkeypatch.setattr(ship, "load", lambda _: pipe)
    monkeypatch.setattr(ship, "tune", tuned)
    monkeypatch.setattr(ship, "describe", lambda *_: "")
    given = ["--model", "tiny-flux", "--steps", "20", "28", "--out", str(tmp_path / "p.json")]
    ship.main(given)
    assert asked == [(20, 6.0), (28, 6.0), (20, 1.0), (28, 1.0)]
    ship.main(given)
    assert len(asked) == 4 and len(read_profile(tmp_path / "p.json").fronts) == 4
    ship.main([*given, "--again"])
    assert len(asked) == 8


@pytest.mark.parametrize("model", ship.IMAGES)
def test_embedded_models_come_with_a_front_for_each_call(model: str) -> None:
    """And the fastest of each is at least 10 times cheaper than the call, as `speedup=` will say."""
    pipe = load(model)
    fronts = read_profile(shipped_file(Model.of(pipe))).fronts
    for scale, steps in itertools.product(ship.SCALES, ship.STEPS):
        call = Facts.of(pipe, with_defaults(pipe, call_of(model, steps, scale)), steps)
        (front,) = (front for front in fronts if front.call.matches(call))
        assert front.with_speedup(10).flop_ratio >= 10, call
