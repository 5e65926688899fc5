"""The planner's second look: what had luck on the seeds of the search is found out on others."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ralu_cache import RALU
from ralu_cache.profiles.setting import Setting
from ralu_cache.tune.again import MOST, SEEDS, candidates, looked_at_again
from ralu_cache.tune.bench import Bench, Run, Subject
from ralu_cache.tune.front import Measured, front

COUNT = 6
SLOW, LUCKY = (Setting(RALU(steps=(steps,), ends=(1.0,))) for steps in (7, 3))


class Luck(Bench):
    """Draws what the seed says: the fast setting loses nothing on the seeds of the search, and much on others."""

    def run(self, setting: Setting, chunk: range) -> Run:
        self.call.setdefault("drawn", []).extend((setting, self.subjects[index].seed) for index in chunk)
        new = self.subjects[chunk.start].seed >= SEEDS
        return Run(np.full((len(chunk), 1, 1, 3), 90 if setting == LUCKY and new else 1, np.uint8), 1.0, 0.1)

    def losses(self, pictures: np.ndarray, chunk: range) -> list[float]:
        return [float(each.mean()) for each in pictures]


@pytest.fixture
def bench() -> Luck:
    subjects = tuple(Subject(f"prompt {index}", index) for index in range(COUNT))
    return Luck(None, 50, {}, subjects, None, Path("none"), 4)  # type: ignore[arg-type]


@pytest.fixture
def study() -> Any:
    attributes: dict[str, Any] = {}
    return SimpleNamespace(user_attrs=attributes, set_user_attr=attributes.__setitem__)


def trial(number: int, setting: Setting, share: float, loss: float) -> Measured:
    return Measured(number, setting, (loss, loss + 0.1) * (COUNT // 2), share, share)


TRIALS = [trial(0, SLOW, 1 / 7, 1.0), trial(1, LUCKY, 1 / 20, 0.0)]


def test_luck_is_found_out(bench: Luck, study: Any) -> None:
    assert [each.setting for each in front(TRIALS)] == [LUCKY], "on the seeds of the search it beats all that is slower"
    again = looked_at_again(bench, study, candidates(TRIALS), 0.001, time.monotonic() + 60)
    assert [each.setting for each in front(again)] == [SLOW, LUCKY]
    assert [each.loss for each in again] == [1, 90] and {len(each.losses) for each in again} == {COUNT}
    assert min(seed for _, seed in bench.call["drawn"]) >= SEEDS, "no seed of the search is drawn again"


def test_what_was_drawn_is_not_drawn_again(bench: Luck, study: Any) -> None:
    end = time.monotonic() + 60
    first = looked_at_again(bench, study, TRIALS, 0.001, end)
    drawn = len(bench.call["drawn"])
    third = trial(2, replace(SLOW, solver="dpm"), 1 / 8, 0.5)
    second = looked_at_again(bench, study, [*TRIALS, third], 0.001, end)
    assert second[:2] == first and len(bench.call["drawn"]) == drawn + COUNT


def test_without_time_it_says_so(bench: Luck, study: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ralu_cache"):
        assert looked_at_again(bench, study, TRIALS, 100.0, time.monotonic() + 60) == []
    assert "may be luck" in caplog.text and "drawn" not in bench.call


def test_all_stand_on_the_same_prompts_when_time_ends(bench: Luck, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1000.0])
    monkeypatch.setattr("ralu_cache.tune.again.time.monotonic", lambda: next(now))
    again = looked_at_again(bench, study, TRIALS, 0.001, 500.0)
    assert [len(each.losses) for each in again] == [2, 2]


def test_candidates_come_from_every_span_of_speed() -> None:
    many = [trial(number, SLOW, math.exp(-number / 25), number % 5) for number in range(1, 100)]
    found = candidates([*many, replace(many[3], share=1.2), replace(many[4], whole=False, losses=(-9.0,))])
    assert len(found) == MOST and all(each.whole and each.share < 1 for each in found)
    assert [each.share for each in found] == sorted((each.share for each in found), reverse=True)
    assert {each.losses[0] for each in found} == {0}, "of each span the one that lost least"
    assert candidates([]) == []
