"""The benchmark of the planner: what it reports of rows, without drawing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.tune import study
from benchmarks.tune.study import Line, area, best_at, lines_of, plot, table


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
    return lines_of(ROWS, True, {0, 16})


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
    page = table("tiny-flux", tuned, lines_of(ROWS[:4], False, {0, 16}), 32)
    assert "| 20x | 20.0x: overfit | +10.0 (+10.0 to +10.0) | 81.0 | – |" in page
    assert "| 8.0x | tuned | tuned | +0.50 | +1.0 (+1.0 to +1.0) |" in page
    plot(tuned, tuned, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000
