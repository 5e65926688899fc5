"""PSNR and SSIM against values known by hand."""

import math

import numpy as np
import pytest

pytest.importorskip("torchmetrics")

from ralu_cache.metrics import psnr, ssim


def test_psnr_is_that_of_the_definition() -> None:
    reference = np.zeros((2, 16, 16, 3))
    pictures = np.stack([reference[0] + 0.1, reference[1] + 0.01])
    assert psnr(pictures, reference) == pytest.approx([20.0, 40.0], abs=1e-3)
    assert psnr(reference, reference) == [math.inf, math.inf]


def test_ssim_of_equal_and_of_unlike_pictures() -> None:
    noise = np.random.default_rng(0).random((2, 32, 32, 3))
    assert ssim(noise, noise) == pytest.approx([1.0, 1.0])
    assert max(ssim(noise, noise[::-1].copy())) < 0.2
    assert ssim(noise[:1], noise[:1]) == pytest.approx([1.0])


def test_a_single_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, Y, X, 3\), got shape \(8, 8, 3\)"):
        psnr(np.zeros((8, 8, 3)), np.zeros((8, 8, 3)))
