"""Bootstrap intervals against what statistics says of normal samples."""

import numpy as np
import pytest

from ralu_cache.quality.intervals import Interval, bootstrap, pictures_needed

SAMPLE = np.random.default_rng(0).normal(3.0, 2.0, 100)


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    found = bootstrap(SAMPLE, draws=4000)
    error = SAMPLE.std() / 10
    assert found.value == pytest.approx(SAMPLE.mean())
    assert found.low == pytest.approx(SAMPLE.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(SAMPLE.mean() + 1.96 * error, abs=0.1 * error)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap(rng.normal(0, 1, 40), draws=200, level=0.8) for _ in range(300)]
    assert np.mean([one.low <= 0 <= one.high for one in intervals]) == pytest.approx(0.8, abs=0.07)


def test_rows_of_features_are_drawn_whole() -> None:
    rows = np.stack([SAMPLE, -SAMPLE], 1)
    found = bootstrap(rows, lambda table: float(table.sum()), draws=50)
    assert found == Interval(pytest.approx(0), pytest.approx(0), pytest.approx(0))


def test_differences_that_are_told_from_none() -> None:
    assert bootstrap(SAMPLE).excludes_zero and bootstrap(-SAMPLE).excludes_zero
    assert not bootstrap(SAMPLE - SAMPLE.mean()).excludes_zero


def test_pictures_needed_grow_with_the_square() -> None:
    assert pictures_needed(SAMPLE, 1.0) == int(np.ceil((1.96 * SAMPLE.std(ddof=1)) ** 2))
    assert pictures_needed(SAMPLE, 0.5) == pytest.approx(4 * pictures_needed(SAMPLE, 1.0), abs=4)


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 pictures"):
        bootstrap([1.0])
    with pytest.raises(ValueError, match=r"got 0 and 0\.95"):
        bootstrap(SAMPLE, draws=0)
    with pytest.raises(ValueError, match="smallest must be positive, got 0"):
        pictures_needed(SAMPLE, 0)
