"""PSNR, SSIM and MS-SSIM against values known by hand."""

import math

import numpy as np
import pytest

from ralu_cache.quality.likeness import LIKENESS, ms_ssim, psnr, ssim


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((2, size, size, 3), np.float32)


def test_psnr_is_that_of_the_definition() -> None:
    reference = np.zeros((2, 16, 16, 3))
    pictures = np.stack([reference[0] + 0.1, reference[1] + 0.01])
    assert psnr(pictures, reference) == pytest.approx([20.0, 40.0], abs=1e-3)
    assert psnr(reference, reference) == [math.inf, math.inf]


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_similarity_of_equal_and_of_unlike_pictures(measure) -> None:
    pictures = noise(128)
    assert measure(pictures, pictures) == pytest.approx([1.0, 1.0])
    assert max(measure(pictures, noise(128, seed=1))) < 0.2
    assert measure(pictures[:1], pictures[:1]) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("size", "scales"), [(21, 1), (22, 2), (43, 2), (64, 3), (98, 3), (128, 4), (175, 4), (256, 5)]
)
def test_ms_ssim_takes_as_many_scales_as_fit(monkeypatch: pytest.MonkeyPatch, size: int, scales: int) -> None:
    taken = []

    def spy(shown, wanted, *, betas, **options):
        taken.append(betas)
        return shown.new_ones(len(shown))

    monkeypatch.setattr(f"{ms_ssim.__module__}.multiscale_structural_similarity_index_measure", spy)
    ms_ssim(noise(size), noise(size))
    assert len(taken[0]) == scales
    assert sum(taken[0]) == pytest.approx(1)


@pytest.mark.parametrize("size", [11, 22, 44, 99, 176])
def test_torchmetrics_accepts_the_smallest_sizes_of_each_number_of_scales(size: int) -> None:
    assert ms_ssim(noise(size), noise(size)) == pytest.approx([1.0, 1.0])


def test_ms_ssim_of_opposite_contrast_is_a_number() -> None:
    picture = noise(128)
    assert all(math.isfinite(value) for value in ms_ssim(picture, 1 - picture))


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 11 pixels a side, got \(10, 10\)"):
        ms_ssim(noise(10), noise(10))


@pytest.mark.parametrize("metric", LIKENESS, ids=lambda metric: metric.name)
def test_metrics_give_one_finite_value_for_each_picture(metric) -> None:
    pictures = noise(128)
    assert metric.reference
    equal, unlike = metric(pictures, pictures, ["", ""]), metric(pictures, pictures[::-1], ["", ""])
    assert equal == ([100.0, 100.0] if metric.name == "psnr" else pytest.approx([1.0, 1.0]))
    assert len(unlike) == 2
    assert max(unlike) < min(equal)


def test_what_cannot_be_compared_is_refused() -> None:
    pictures = noise(16)
    with pytest.raises(ValueError, match="references is None"):
        LIKENESS[0](pictures, None, ["", ""])
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 3\)"):
        psnr(pictures, pictures[:1])
    with pytest.raises(ValueError, match=r"\(B, Y, X, 3\), got shape \(8, 8, 3\)"):
        psnr(np.zeros((8, 8, 3)), np.zeros((8, 8, 3)))
    broken = pictures.copy()
    broken[1, 3, 3, 0] = np.nan
    with pytest.raises(ValueError, match=r"those at \[1\]"):
        psnr(broken, pictures)
