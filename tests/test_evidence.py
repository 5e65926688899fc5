"""Duels at equal cost, on numbers that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.evidence.duels import CACHES, FEWER, MEASURES, OURS, Way, at_cost, beside_ours, duels, front, kind_of
from benchmarks.evidence.page import page
from benchmarks.regime.rivals import PEERS
from benchmarks.regime.settings import FOUND, FULL, REGIMES, settings


def way(name: str, kind: str, ratio: float, attributes: list[float], frechet: float = 10.0) -> Way:
    values = dict.fromkeys((*MEASURES, "gradient"), np.array(attributes, float))
    return Way(name, kind, 6.0, ratio, values, frechet)


DEAR, MIDDLE = way("8 plain steps", FEWER, 4.0, [90, 100]), way("5 plain steps", FEWER, 8.0, [70, 60])
CHEAP = way("3 plain steps", FEWER, 16.0, [50, 40])
WORSE = way("7 steps of UniPC", FEWER, 6.0, [10, 10])


def test_a_front_leaves_out_what_another_beats_in_both() -> None:
    assert front([CHEAP, WORSE, MIDDLE, DEAR]) == [DEAR, MIDDLE, CHEAP]
    assert front([DEAR, way("as dear", FEWER, 4.0, [80, 80])]) == [DEAR]


def test_a_cost_between_two_is_a_share_of_each_picture_of_both() -> None:
    rival = at_cost([DEAR, MIDDLE, CHEAP], 32**0.5)  # half way in log FLOPs
    np.testing.assert_allclose(rival.values["attributes"], [80, 80])
    assert not rival.beyond and rival.told.startswith("between 8 plain steps")
    assert at_cost([DEAR, MIDDLE, CHEAP], 8.0).told == "5 plain steps, guidance 6"


def test_beyond_the_cheapest_stands_the_cheapest_and_is_called_so() -> None:
    rival = at_cost([DEAR, MIDDLE], 20.0)
    assert rival.beyond and rival.values is MIDDLE.values
    before = at_cost([DEAR, MIDDLE], 2.0)
    assert not before.beyond and before.values is DEAR.values, "dearer than was asked for"


def test_ours_meet_the_best_of_the_others() -> None:
    ours = way("ralu-8x", OURS, 8.0, [80, 50])
    cache = way("DBCache", CACHES, 8.0, [75, 70])
    (duel,) = duels([ours, DEAR, MIDDLE, CHEAP, cache])
    assert duel.kind == CACHES and duel.wins() == (1, 0, 1) and duel.lost(1) == [1]
    assert duel.difference().value == pytest.approx(-7.5)
    (beside,) = beside_ours([ours, DEAR, cache])
    assert beside.ours is cache and beside.rival.told == "ralu-8x, guidance 6"
    written = page({"m": [duel]}, {"m": [beside]})
    assert "| ralu-8x, guidance 6 | 8x | DBCache, guidance 6 | 65.0 | 72.5 | -7.5" in written
    assert "| DBCache, guidance 6 | 2 | 8x | 72.5 | ralu-8x, guidance 6 |" in written


def test_a_cost_that_only_one_kind_reaches_is_not_met_by_the_others_cheapest() -> None:
    """A cache that is dearer, and so draws better, is no rival at a cost that fewer steps reach."""
    ours, cache = way("ralu-18x", OURS, 16.0, [80, 50]), way("MagCache", CACHES, 12.0, [90, 80])
    (duel,) = duels([ours, DEAR, MIDDLE, CHEAP, cache])
    assert duel.rival.told == "3 plain steps, guidance 6" and duel.kind == FEWER and not duel.rival.beyond
    (duel,) = duels([replace(ours, ratio=14.0), DEAR, MIDDLE, CHEAP, cache])
    assert duel.kind == f"{CACHES} and {FEWER}" and duel.rival.mean == pytest.approx(65, abs=5)


def test_less_of_a_distance_is_a_win_and_the_page_says_who_wins_by_what() -> None:
    nearer = way("ralu-8x", OURS, 8.0, [50.0] * 8)
    ours = replace(nearer, values=nearer.values | {"attributes": np.full(8, 90.0)})
    theirs = way("5 plain steps", FEWER, 8.0, [60.0] * 8, frechet=20.0)
    (duel,) = duels([ours, theirs])
    assert duel.wins("perceptual") == (8, 0, 0) and duel.verdict("perceptual") == "wins"
    assert duel.wins("psnr") == (0, 0, 8) and duel.verdict("psnr") == "loses" and duel.verdict("sharpness") == "wins"
    written = page({"m": [duel]}, {"m": []})
    assert "- attributes, 8 pictures. Ours wins: ralu-8x, guidance 6 (8x)." in written
    assert "- PSNR, 8 pictures. Ours loses: ralu-8x, guidance 6 (8x)." in written and "| 10 | 20 |" in written


def test_a_frechet_distance_is_shared_as_cost_is() -> None:
    low, high = way("8 plain steps", FEWER, 4.0, [90, 80], 10.0), way("5 plain steps", FEWER, 16.0, [70, 60], 30.0)
    assert at_cost([low, high], 8.0).frechet == pytest.approx(20.0)


def test_every_setting_of_the_study_is_somebodys() -> None:
    for model in FOUND:
        names = {setting.name for regime in REGIMES for setting in settings(model, regime)}
        kinds = {name: kind_of(name, model) for name in names}
        assert kinds[FULL] == FEWER and {kinds[name] for name in PEERS[model]} == {CACHES}
        assert {name for name, kind in kinds.items() if kind == OURS} == {
            name for name in names if name.startswith(("ralu", "taylorseer", "toca", "three stages"))
        }
