"""Where others beat ours, and how fast each group is at a given loss."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.quality.base import MetricInfo
from ralu_cache.sweep.groups import OTHERS, OURS
from ralu_cache.sweep.loss import fastest_within, gain_of_both, loss_metric
from ralu_cache.sweep.records import Header, Setting
from ralu_cache.sweep.rivals import ERRORS, defeats
from ralu_cache.sweep.summary import Quality, Row, Summary, summarise
from tests.sweep_results import distance, fabricated

FAMILIES = (*OURS, *OTHERS)
NOISE = (-1.0, 0.0, 1.0)
POINTS = st.lists(st.tuples(st.sampled_from(FAMILIES), st.integers(1, 8), st.integers(0, 8)), max_size=10)


def rows_of(points: list[tuple[str, float, float]], higher: bool, noise: tuple[float, ...] = ()) -> Summary:
    header = Header("m", 50, {}, {"q": MetricInfo("q", "%", higher)}, "", {})
    rows = []
    for index, (family, speed, score) in enumerate(points):
        mean = score if higher else -score
        # alternate signs, so that the noise of two rows does not cancel out pair by pair
        values = tuple(mean + (-1) ** index * each for each in noise)
        quality = {"q": Quality(mean, math.nan, values)}
        rows.append(Row(Setting(str(index), 50, 8, 8), family, speed, speed, speed, 1, 1.0, 3, True, quality))
    return Summary(header, tuple(rows), ())


@given(POINTS, st.booleans())
def test_without_noise_the_defeats_are_the_rivals_front_that_none_of_ours_reaches(points, higher):
    summary = rows_of(points, higher)
    found = {defeat.rival.setting for defeat in defeats(summary, "q")}
    ours = [(speed, score) for family, speed, score in points if family in OURS]
    for row in summary.front("q", OTHERS):
        _, speed, score = points[int(row.setting.method)]
        reached = any(x >= speed and y >= score for x, y in ours)
        assert (row.setting in found) != reached


@given(POINTS, st.booleans())
def test_a_front_dominated_nowhere_yields_nothing(points, higher):
    matched = [*points, *(("combined", speed, score) for _, speed, score in points)]
    assert defeats(rows_of(matched, higher), "q") == []


@given(st.floats(0, 10), st.booleans())
def test_a_gap_counts_from_the_spread_of_the_pairs_on(gap, higher):
    (defeat, *_) = [*defeats(rows_of([("temporal", 2, 50), ("peer", 2, 50 + gap)], higher, NOISE), "q"), None]
    error = 2 / math.sqrt(3)  # the differences of the pairs are -2, 0, 2 around the gap
    if not math.isclose(gap, ERRORS * error):
        assert (defeat is not None) == (gap > ERRORS * error)
    if defeat is not None:
        assert math.isclose(defeat.gap, gap, abs_tol=1e-9) and math.isclose(defeat.error, error, rel_tol=1e-6)


def test_sizes_do_not_meet():
    summary = summarise(fabricated(failing=None, sizes=(128, 256)), {"distance": distance})
    for name in summary.plotted:
        for defeat in defeats(summary, name):
            assert defeat.ours is None or defeat.ours.setting.height == defeat.rival.setting.height


@given(POINTS, st.integers(0, 4), st.booleans())
def test_the_fastest_of_each_group_that_keeps_the_quality(points, drop, higher):
    found = fastest_within(rows_of([("full", 1, 8), *points], higher), (8, 8), "q", drop)
    assert found is not None and set(found) | {"guidance", "solver"} == set(FAMILIES)
    for where_measured in ("guidance", "solver"):
        assert (where_measured in found) == any(name == where_measured for name, _, _ in points)
    for family, row in found.items():
        fitting = [speed for name, speed, score in points if name == family and score >= 8 - drop]
        assert (row.speedup if row else None) == max(fitting, default=None)


def test_guidance_alone_is_a_group_where_it_was_measured():
    points = [("full", 1, 5), ("temporal", 2, 5), ("combined", 6, 5)]
    found = fastest_within(rows_of(points, True), (8, 8), "q")
    assert "guidance" not in found and gain_of_both(found) == 3
    found = fastest_within(rows_of([*points, ("guidance", 3, 5)], True), (8, 8), "q")
    assert found["guidance"].speedup == 3 and gain_of_both(found) == 2


def test_what_cannot_be_told():
    summary = rows_of([("spatial", 2, 5), ("combined", 3, 5)], True)
    assert fastest_within(summary, (8, 8), "q") is None, "no full run"
    with pytest.raises(ValueError, match=r"drop .* got -1"):
        fastest_within(summary, (8, 8), "q", -1)
    found = fastest_within(rows_of([("full", 1, 5), ("spatial", 2, 5), ("combined", 3, 5)], True), (8, 8), "q")
    assert found is not None and gain_of_both(found) == 1.5
    assert loss_metric(summarise(fabricated())) == "attributes"
