"""Laws of the Fréchet distance, and its value where it is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.quality.frechet import Gaussian, frechet_distance

SEEDS = st.integers(0, 2**32 - 1)


def gaussian(seed: int, size: int = 4, rank: int = 4) -> Gaussian:
    """With any mean, and a covariance of the given rank."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, rank))
    return Gaussian(rng.normal(size=size), factor @ factor.T)


@given(seed=SEEDS, rank=st.integers(0, 4))
def test_equal_distributions_are_at_zero(seed: int, rank: int) -> None:
    one = gaussian(seed, rank=rank)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


@given(seed=SEEDS, other=SEEDS, rank=st.integers(0, 4))
def test_it_is_symmetric(seed: int, other: int, rank: int) -> None:
    a, b = gaussian(seed), gaussian(other, rank=rank)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6, abs=1e-6)


@given(seed=SEEDS, other=SEEDS, third=SEEDS)
def test_its_root_obeys_the_triangle_inequality(seed: int, other: int, third: int) -> None:
    a, b, c = gaussian(seed), gaussian(other), gaussian(third)
    straight, first, second = (frechet_distance(*pair) ** 0.5 for pair in ((a, c), (a, b), (b, c)))
    assert straight <= first + second + 1e-5


@given(seed=SEEDS, other=SEEDS)
def test_independent_features_add_their_own_distances(seed: int, other: int) -> None:
    """Diagonal covariances: (m - m')² + (s - s')² for each feature, with s the standard deviations."""
    (mean, deviation), (mean_2, deviation_2) = (np.random.default_rng(each).random((2, 4)) for each in (seed, other))
    expected = np.square(mean - mean_2).sum() + np.square(deviation - deviation_2).sum()
    a, b = Gaussian(mean, np.diag(deviation**2)), Gaussian(mean_2, np.diag(deviation_2**2))
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)


@given(seed=SEEDS, other=SEEDS, turn=SEEDS)
def test_turning_both_changes_nothing(seed: int, other: int, turn: int) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(turn).normal(size=(4, 4)))
    a, b = gaussian(seed), gaussian(other)
    turned = (Gaussian(rotation @ g.mean, rotation @ g.covariance @ rotation.T) for g in (a, b))
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-6, abs=1e-6)


def test_fitting_finds_mean_and_covariance() -> None:
    rows = np.array([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]], np.float32)
    found = Gaussian.fit(rows)
    assert found.mean.tolist() == [2, 2]
    assert found.covariance.tolist() == [[4, 4], [4, 4]]


def test_few_samples_are_biased_upwards() -> None:
    """As the docstring says: samples of the very distribution are further from it the fewer they are."""
    rng, truth = np.random.default_rng(0), Gaussian(np.zeros(8), np.eye(8))
    few, many = (
        np.mean([frechet_distance(Gaussian.fit(rng.normal(size=(n, 8))), truth) for _ in range(20)]) for n in (16, 256)
    )
    assert few > 4 * many > 0


def test_statistics_survive_the_file(tmp_path) -> None:
    one = gaussian(0)
    one.save(tmp_path)
    again = Gaussian.load(tmp_path)
    assert np.array_equal(one.mean, again.mean)
    assert np.array_equal(one.covariance, again.covariance)


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,)])
def test_one_picture_is_no_distribution(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least 2 pictures, got shape"):
        Gaussian.fit(np.zeros(shape))
