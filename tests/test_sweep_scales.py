"""Axes of the plots, and the labels in them."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.sweep.placing import RADII, place_labels
from ralu_cache.sweep.scales import linear_limits, linear_ticks, speed_limits, speed_ticks

SPEEDS = st.lists(st.tuples(st.floats(0.2, 40), st.floats(1, 2)), min_size=1, max_size=8)


def test_speed_ticks_are_round():
    assert speed_ticks(0.9, 13) == [1, 1.5, 2, 3, 4, 6, 8, 12]
    assert speed_ticks(0.5, 1) == [0.5, 0.75, 1]


@given(SPEEDS)
def test_speed_limits_hold_everything_and_one(speeds):
    ranges = [(low, low * factor) for low, factor in speeds]
    low, high = speed_limits(ranges)
    assert low < 1 < high and all(low < a <= b < high for a, b in ranges)
    assert all(low <= tick <= high for tick in speed_ticks(low, high)) and 1 in speed_ticks(low, high)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_linear_ticks_are_few_evenly_spaced_and_inside(low, width):
    low, high = linear_limits([(low, low + width)])
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in ticks)
    gaps = [b - a for a, b in pairwise(ticks)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-4, abs_tol=1e-9) for gap in gaps)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12, unique=True))
def test_labels_of_points_far_apart_touch_nothing(cells):
    points = [(40.0 * x + 20, 40.0 * y + 20) for x, y in cells]
    places = place_labels(points, (9, 7), (400, 400))
    assert len(places) == len(points)
    for point, place in zip(points, places, strict=True):
        assert math.isclose(math.dist(point, place), RADII[0])


def test_labels_of_near_points_are_moved_apart():
    points = [(50.0, 50.0), (51.0, 50.0), (52.0, 51.0), (50.0, 52.0)]
    places = place_labels(points, (9, 7), (100, 100))
    for index, a in enumerate(places):
        assert all(abs(a[0] - b[0]) >= 9 - 1e-9 or abs(a[1] - b[1]) >= 7 - 1e-9 for b in places[:index])
