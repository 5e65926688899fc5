"""The study of tiny Wan: how its videos move, what it compares, and a run of it that goes on."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.regime.setting import Setting
from benchmarks.tiny_wan import study
from benchmarks.tiny_wan.methods import CACHES, FEWER, FULL, OURS, Method, methods
from benchmarks.tiny_wan.motion import jitter, motion_spectrum, spectrum_distance
from benchmarks.tiny_wan.study_page import page, ways


def test_what_flickers_has_more_jitter() -> None:
    ramp = np.linspace(0, 0.5, 5)[:, None, None, None] ** 2 + np.zeros((5, 16, 16, 3))
    flicker = ramp + 0.1 * (np.arange(5) % 2)[:, None, None, None]
    assert jitter(flicker) > 10 * jitter(ramp) and jitter(ramp + 0.1) == pytest.approx(jitter(ramp))


def test_a_spectrum_over_time_sees_the_pace_of_what_moves_and_not_where_it_is() -> None:
    rng = np.random.default_rng(0)
    still = rng.random((1, 16, 16, 3))
    slow, fast = (np.stack([np.roll(still[0], step * speed, 1) for step in range(9)]) for speed in (1, 4))
    assert spectrum_distance(slow, slow) == 0
    assert spectrum_distance(np.roll(slow, 5, 2), slow) == pytest.approx(0, abs=1e-9), "elsewhere, as fast"
    assert spectrum_distance(np.repeat(still, 9, 0), slow) > 10 and spectrum_distance(fast, slow) > 1
    flicker = 0.1 * (np.arange(9) % 2)[:, None, None, None] + np.zeros((9, 4, 4, 3))
    power = motion_spectrum(flicker)
    assert power.argmax() == len(power) - 1 == 4, "there and back is the highest frequency"


def test_every_kind_is_compared_under_names_of_its_own() -> None:
    every = [*methods()]
    assert every[0].setting.name == FULL and {method.kind for method in every} == {OURS, FEWER, CACHES}
    assert len({study.made(method) for method in every}) == len({method.setting.name for method in every}) == len(every)


EVERY = (
    Method(Setting(FULL, 5.0, 4), FEWER),
    Method(Setting("2 plain steps", 5.0, 2), FEWER),
    Method(Setting("1 step of UniPC", 5.0, 1, 2.5, "unipc"), FEWER),
    Method(Setting("+forecast:2 on 4 steps", 5.0, 4, temporal="forecast:2,ramp=false")),
)


def test_a_small_study_goes_on_and_tells_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "BATCH", 1)
    pipes = study.pipelines()
    study.run(tmp_path, 1, (), pipes, EVERY)
    before = (tmp_path / "study.jsonl").read_text()
    study.run(tmp_path, 1, (), pipes, EVERY)
    assert (tmp_path / "study.jsonl").read_text() == before and before.count("\n") == len(EVERY)
    study.run(tmp_path, 2, ("full", "forecast"), pipes, EVERY)
    rows = study.latest(study.rows_of(tmp_path / study.ROWS), EVERY)
    assert [(row["name"], row["start"]) for row in rows[:2]] == [(FULL, 0), (FULL, 1)]
    assert {way.name for way in ways(rows)} == {FULL, EVERY[3].setting.name}, "those that have all videos"
    text = page(rows, study.clips(2))
    assert "| full | 12.5x | " in text and text.count("+forecast:2") == 2 and "2 prompts" in text
    other = Method(Setting(EVERY[3].setting.name, 5.0, 4, temporal="forecast:2"))
    assert len(study.latest(rows, (*EVERY[:3], other))) == len(rows) - 2, "of another setting of that name"


def test_the_committed_page_is_that_of_the_committed_rows() -> None:
    rows = study.latest(study.rows_of(study.OUT / study.ROWS), [*methods()])
    count = len(ways(rows)[0].values["attributes"])
    assert (study.OUT / "study.md").read_text() == page(rows, study.clips(count))
