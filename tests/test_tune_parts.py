"""The planner's pure parts: its space and seeds, fronts, losses, and the file of prompts."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache import RALU, Guidance
from ralu_cache.cli import main
from ralu_cache.profiles.profile import Point
from ralu_cache.profiles.setting import Setting, read_setting
from ralu_cache.quality.base import MetricInfo
from ralu_cache.tune.bench import Bench, subjects_of, told_call
from ralu_cache.tune.command import read_prompts
from ralu_cache.tune.front import Measured, chosen, front, hopeless, hypervolume, told_front
from ralu_cache.tune.options import add_tune
from ralu_cache.tune.quality import loss_of
from ralu_cache.tune.seeds import seeds
from ralu_cache.tune.space import Given, Space

PLAN = Setting(RALU(steps=(4, 2), ends=(0.5, 1.0)))


# ---- space and seeds


SPACES = {"all": Space(28, True, scales=(2.0, 6.0)), "four": Space(4), "plain": Space(2, True, (1,), ("none",))}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_whatever_is_suggested_is_a_setting_that_survives_a_file(space: Space) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [space.suggest(study.ask()) for _ in range(150)]
    assert all(read_setting(json.loads(json.dumps(setting.to_dict()))) == setting for setting in found)
    assert {len(setting.spatial.ends) for setting in found} == set(space.stages)
    assert any(setting.guidance for setting in found) == space.guided
    assert len(set(found)) > (5 if space.steps == 2 else 100)


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_seeds_are_whole_and_hold_the_presets(steps: int) -> None:
    space = Space(steps, True)
    given = seeds(space)
    settings = [space.suggest(Given(values)) for values in given]
    assert len(set(settings)) == len(settings) > 8
    if steps >= 8:
        late = RALU.preset("ralu-15x")
        plan = RALU(steps=late.steps, ends=late.ends, shifts=late.shifts, z=late.z)
        assert Setting(plan, None, Guidance(early=True)) in settings
    study = optuna.create_study(directions=["minimize"] * 2)
    for values in given:  # optuna takes them as they are, and asks for nothing more
        study.enqueue_trial(values)
    for setting, values in zip(settings, given, strict=True):
        trial = study.ask()
        assert space.suggest(trial) == setting and trial.params == values


def test_what_a_pipeline_refuses_is_neither_suggested_nor_seeded() -> None:
    space = Space(20, False, (1,), ("none", "forecast"), ("euler",))
    for values in seeds(space):
        setting = space.suggest(Given(values))
        assert len(setting.spatial.ends) == 1 and setting.guidance is None and setting.solver is None


@pytest.mark.parametrize("bad", [{"steps": 1}, {"steps": 9, "stages": (4,)}, {"steps": 9, "scales": (6.0, 3.0)}])
def test_a_space_that_is_none_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"steps|stages|scales"):
        Space(**bad)


# ---- fronts


def trial(number: int, share: float, *losses: float, whole: bool = True) -> Measured:
    return Measured(number, Setting(RALU(steps=(number + 1, 1), ends=(0.5, 1.0))), losses, share, share, whole)


def test_the_front_holds_what_nothing_beats() -> None:
    trials = [
        trial(0, 0.5, 1.0, 3.0), trial(1, 0.25, 4.0, 4.0), trial(2, 0.3, 5.0, 5.0), trial(3, 0.1, 9.0, 9.0),
        trial(4, 0.05, 0.0, 0.0, whole=False), trial(5, 1.5, 0.0, 0.0),
    ]  # fmt: skip
    assert [one.number for one in front(trials)] == [0, 1, 3]
    assert [one.number for one in front(trials, most=2)] == [0, 3]
    assert front([]) == []


@given(st.lists(st.tuples(st.floats(0.01, 2), st.floats(-5, 50)), max_size=30))
def test_no_trial_beats_a_front(pairs: list[tuple[float, float]]) -> None:
    trials = [trial(number, share, loss) for number, (share, loss) in enumerate(pairs)]
    kept = front(trials, most=100)
    for one in kept:
        beaten = [t for t in trials if t.share <= one.share and t.loss < one.loss]
        assert not beaten and one.share < 1


def test_bad_settings_are_given_up_and_doubtful_ones_are_not() -> None:
    good = trial(0, 0.2, 10.0, 12.0, 11.0, 11.0)
    assert hopeless([30.0, 28.0], 0.2, [good])
    assert not hopeless([30.0, 28.0], 0.1, [good]), "it is cheaper"
    assert not hopeless([10.5, 12.0], 0.3, [good]), "they can't be told apart"
    assert hopeless([0.0, 0.0], 1.0, []), "it is as slow as the full run"
    spread = trial(1, 0.2, 0.0, 0.0, 60.0, 60.0)
    assert not hopeless([10.0, 20.0], 0.2, [spread]), "two prompts don't tell so little"
    assert not hopeless([30.0, 28.0], 0.2, [trial(2, 0.2, 1.0, 1.0, whole=False)])


def test_hypervolume_is_an_area() -> None:
    assert hypervolume([], 10.0) == 0
    assert math.isclose(hypervolume([trial(0, 1 / 32, 0.0)], 10.0), 1)
    two = [trial(0, 1 / 2, 0.0), trial(1, 1 / 32, 5.0)]
    assert math.isclose(hypervolume(two, 10.0), 0.2 + 0.8 * 0.5)
    assert hypervolume([*two, trial(2, 1 / 32, 5.0)], 10.0) == hypervolume(two, 10.0)


def point(speedup: float, loss: float, high: float | None = None) -> Point:
    return Point(speedup, speedup, loss, loss, loss if high is None else high, PLAN)


def test_points_are_sorted_and_what_is_beaten_is_left_out() -> None:
    points = told_front([point(4, 3), point(2, 1), point(3, 4), point(0.9, 0), point(8, 9)])
    assert [one.speedup for one in points] == [2, 4, 8]


def test_what_is_taken_by_itself() -> None:
    points = [point(2, 1.0, 2.0), point(4, 2.0), point(8, 3.0), point(9, 20.0)]
    assert chosen(points, "loss") == 1
    assert chosen(points, "speed") == 2
    assert chosen(points[:1], "speed") == 0
    with pytest.raises(ValueError, match="unknown target 'both'"):
        chosen(points, "both")


# ---- losses


def darker(pictures: np.ndarray, references: np.ndarray, prompts: Sequence[str]) -> list[float]:
    return [float(picture.mean()) for picture in pictures]


def distance(pictures: np.ndarray, references: np.ndarray, prompts: Sequence[str]) -> list[float]:
    return [float(np.abs(a - b).mean()) for a, b in zip(pictures, references, strict=True)]


distance.info = MetricInfo("distance", higher=False)


def test_a_loss_is_what_the_full_run_has_more() -> None:
    full, dark = np.ones((2, 4, 4, 3), np.float32), np.full((2, 4, 4, 3), 0.25, np.float32)
    assert loss_of(darker, ["a", "b"])(dark, full, ["a", "b"]) == [0.75, 0.75]
    assert loss_of(distance, ["a", "b"])(dark, full, ["a", "b"]) == [0.75, 0.75]
    assert loss_of("tests.test_tune_parts:distance", ["a"])(full, full, ["a", "b"]) == [0, 0]
    video = np.stack([full, dark], 1)  # (B, F, Y, X, 3)
    assert loss_of(distance, ["a"])(video, np.stack([full, full], 1), ["a", "b"]) == [0.375, 0.375]


def test_psnr_is_lost_from_that_of_equal_pictures() -> None:
    full = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    loss = loss_of("psnr", ["a"])
    assert loss(full, full, ["a"]) == [0] and 50 < loss(1 - full, full, ["a"])[0] < 100


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        ("beauty", r"unknown quality 'beauty'; accepted: perceptual, .*package.module:function"),
        ("no.such.module:function", "can't be imported"),
        ("tests.test_tune_parts:nothing", "can't be imported"),
        ("tests.test_tune_parts:PLAN", "no function of"),
        ("attributes", "a fox"),
    ],
)
def test_a_quality_that_is_none_is_refused(quality: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loss_of(quality, ["a fox"])


def test_a_quality_must_give_a_number_a_picture() -> None:
    loss = loss_of(lambda pictures, references, prompts: [1.0], ["a"])
    with pytest.raises(ValueError, match="one finite number a picture"):
        loss(np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4, 3), np.float32), ["a", "b"])


# ---- prompts


def test_prompts_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a red fox\n\n  a blue star \r\n")
    assert read_prompts(file) == ["a red fox", "a blue star"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "holds no prompts"), (b"\n \n", "holds no prompts"), (b"a\n\xff\xfe\n", "line 2: not a text in UTF-8"),
     (b"a\nb\0c\n", "line 2: not a text, it holds a zero byte")],
)  # fmt: skip
def test_a_file_of_prompts_that_is_none_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_prompts(file)


@pytest.mark.parametrize("bad", [[], "a fox", [""], [3]])
def test_prompts_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="prompt"):
        subjects_of(bad, 0)


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [(5, 1, [1, 1, 1, 1, 1]), (7, 4, [2, 4, 1]), (1, 4, [1]), (2, 4, [2]), (6, 2, [2, 2, 2])],
)
def test_the_first_calls_hold_two_prompts_together(count: int, batch: int, expected: list[int]) -> None:
    bench = Bench(None, 8, {}, subjects_of(["a"] * count, 0), None, Path(), batch)
    chunks = bench.chunks(2)
    assert [len(chunk) for chunk in chunks] == expected
    assert [index for chunk in chunks for index in chunk] == list(range(count))


def test_a_study_knows_its_call_by_what_is_in_it() -> None:
    """Not by where it lies in memory: the same command goes on."""

    def told(shade: int) -> Any:
        image = PIL.Image.new("RGB", (4, 4), (shade, 0, 0))
        return told_call({"image": image, "latents": torch.full((2,), shade), "strength": 0.6, "guidance_scale": None})

    assert told(3) == told(3) != told(4)
    assert json.loads(json.dumps(told(3))) == told(3)


# ---- command


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--prompts", str(tmp_path / "missing.txt")]) == 2
    assert "missing.txt" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["tune", "--prompts", str(tmp_path / "empty.txt")]) == 2
    assert "empty.txt holds no prompts" in capsys.readouterr().err


def test_options_have_the_names_of_the_function() -> None:
    import inspect

    from ralu_cache.tune import tune
    from ralu_cache.tune.run import Options

    parser = argparse.ArgumentParser()
    add_tune(parser)
    asked = vars(parser.parse_args(["--prompts", "p.txt"]))
    accepted = inspect.signature(tune).parameters
    for name in Options.__dataclass_fields__.keys() - {"call", "name"}:
        assert name in asked and name in accepted, name
        default = accepted[name].default
        assert asked[name] == default or str(asked[name]) == str(default), name


def test_luck_on_few_prompts_beats_nothing() -> None:
    """A setting that is well on some prompts and breaks others stands on the front by what it surely loses."""
    sound, lucky = trial(0, 0.1, 1.0, 2.0, 1.0, 2.0), trial(1, 0.05, -20.0, -20.0, 20.0, 20.0)
    assert lucky.loss < sound.loss and [one.number for one in front([sound, lucky])] == [0, 1]
    narrow, wide = point(4, 2.0, 2.5), replace(point(8, 1.0, 9.0))
    assert told_front([narrow, wide]) == (narrow, wide)
