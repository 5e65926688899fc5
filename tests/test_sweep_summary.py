"""A sweep's rows and fronts."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.sweep.records import Batch, Record
from ralu_cache.sweep.summary import pareto_front, summarise
from tests.sweep_results import distance, fabricated

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a != b


@given(POINTS, st.randoms())
def test_the_front_is_what_no_point_dominates_in_any_order(points, random):
    front = {points[i] for i in pareto_front(points)}
    assert front == {p for p in points if not any(dominates(q, p) for q in points)}
    shuffled = random.sample(points, len(points))
    assert {shuffled[i] for i in pareto_front(shuffled)} == front


def test_rows_are_compared_over_shared_pictures_and_keep_failures():
    summary = summarise(fabricated(), {"distance": distance})
    rows = {row.setting.method: row for row in summary.rows}
    assert len(summary.pairs) == 16 and rows["none"].speedup == 1 and rows["none"].family == "full"
    broken = rows["ralu-7x"]
    assert (broken.pictures, broken.failures, broken.comparable) == (12, 1, False)
    assert broken not in summary.front("psnr")
    assert rows["MagCache:0.2"].family == "peer"


def test_a_failure_that_went_well_later_is_none():
    results = fabricated()
    failed = next(record for record in results.records if record.error)
    sound = next(r for r in results.records if r.error is None and r.batch == failed.batch)
    results.records.append(replace(sound, setting=failed.setting))
    rows = {row.setting.method: row for row in summarise(results).rows}
    assert (rows["ralu-7x"].pictures, rows["ralu-7x"].failures, rows["ralu-7x"].error) == (16, 0, None)


def test_plain_steps_cost_their_share():
    rows = {row.setting.method: row for row in summarise(fabricated()).rows}
    assert rows["none"].flop_ratio == 1 and rows["steps:8"].flop_ratio == 50 / 8


def test_likeness_to_the_full_run_has_a_front_without_it():
    summary = summarise(fabricated(), {"distance": distance})
    assert summary.compares_with_full("psnr") and not summary.compares_with_full("attributes")
    assert "full" not in {row.family for row in summary.front("psnr")}
    assert summary.front("attributes")[0].family == "full"
    assert {row.family for row in summary.front("psnr", ("steps", "peer"))} == {"steps", "peer"}


@given(st.lists(st.floats(-100, 100), min_size=16, max_size=16))
def test_the_jackknife_of_a_mean_is_its_standard_error(values):
    results = fabricated(failing=None)
    features = {"distance": tuple((value, value) for value in values)}
    whole = Record(results.settings[0], Batch(tuple("abcd" * 4), tuple(range(16))), features=features)
    quality = summarise(replace(results, records=[whole]), {"distance": distance}).rows[0].quality["distance"]
    groups = np.reshape(np.float32(values), (2, 8)).mean(0)
    assert np.allclose(quality.error, groups.std(ddof=1) / 8**0.5, atol=1e-3)
