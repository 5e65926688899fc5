"""The trained classifier: what it costs, how it sees, and that its stated accuracy is true."""

import json

import numpy as np
import pytest

from benchmarks.classifier_accuracy import accuracy, renders
from ralu_cache.quality.attributes import (
    attribute_accuracy,
    attribute_shares,
    probability_of_the_stated,
    scene_accuracy,
    shape_accuracy,
    shown_share,
    stated_probability,
)
from ralu_cache.quality.classifier import classifier_folder, classify, load_classifier
from ralu_cache.quality.frechet import distance_to_renders
from ralu_cache.quality.scene_prompts import ATTRIBUTES, read_prompt


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, list[str]]:
    """Seen neither in training nor where the accuracy was measured."""
    return renders(96, seed=777)


def test_it_is_small() -> None:
    assert sum(parameter.numel() for parameter in load_classifier().parameters()) < 500_000
    assert sum(path.stat().st_size for path in classifier_folder().iterdir()) < 2_000_000


def test_its_stated_accuracy_is_true(scenes) -> None:
    stated = json.loads((classifier_folder() / "classifier.json").read_text())["accuracy in percent"]["renders"]
    found = accuracy(*scenes)
    assert found["all"] == pytest.approx(stated["all"], abs=2)
    assert set(stated) == {"all", "pictures wholly right", *ATTRIBUTES}


def test_other_prompts_score_lower(scenes) -> None:
    pictures, prompts = scenes
    right, wrong = (attribute_accuracy(pictures, told) for told in (prompts, [*prompts[1:], prompts[0]]))
    assert np.mean(right) > np.mean(wrong) + 30
    assert all(0 <= value <= 100 for value in right + wrong)


def test_a_scene_is_right_if_every_attribute_is(scenes) -> None:
    pictures, prompts = scenes[0][:24], [*scenes[1][:12], *scenes[1][:12]]
    shares, whole = (metric(pictures, prompts) for metric in (attribute_accuracy, scene_accuracy))
    assert whole == [100.0 * (share > 99.9) for share in shares] and set(whole) == {0.0, 100.0}


def test_a_picture_is_judged_alone(scenes) -> None:
    pictures, _ = scenes
    alone, together = classify(pictures[5:6]), classify(pictures)
    np.testing.assert_allclose(alone[0][0], together[0][5], rtol=1e-4, atol=1e-4)
    for name, scores in together[1].items():
        assert scores.shape == (len(pictures), len(ATTRIBUTES[name]))
        np.testing.assert_allclose(alone[1][name][0], scores[5], rtol=1e-3, atol=1e-3)


def test_twice_the_size_is_brought_down_by_area(scenes) -> None:
    pictures = scenes[0][:4]
    large = pictures.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(classify(large)[0], classify(pictures)[0], rtol=1e-3, atol=1e-3)


def test_features_of_real_renders_are_nearer_than_those_of_noise(scenes) -> None:
    metric = distance_to_renders()
    real = metric.features(*scenes)
    noise = np.random.default_rng(0).random((len(real), 128, 128, 3), np.float32)
    assert real.shape == (96, 32)
    assert metric.value(real) < 0.5 * metric.value(metric.features(noise, scenes[1]))


def test_what_is_not_a_batch_of_pictures_is_refused(scenes) -> None:
    pictures, prompts = scenes
    with pytest.raises(ValueError, match=r"\(B, Y, X, 3\), got shape \(128, 128, 3\)"):
        classify(pictures[0])
    with pytest.raises(ValueError, match="2 pictures need as many prompts, got 3"):
        attribute_shares(pictures[:2], prompts[:3])


def test_shares_count_only_what_is_stated() -> None:
    """By hand: the best scores say a red star on blue and pink; pink was to be white."""
    best = {"count": ["one"], "shape": ["star"], "colour": ["red"], "background": ["dotted"], "size": ["small"]}
    best["background colours"] = ["blue", "pink"]
    scores = {
        name: np.array([value in best.get(name, []) for value in classes], np.float32)
        for name, classes in ATTRIBUTES.items()
    }
    statement = read_prompt("a red circle on a blue and white dotted background")
    assert shown_share(scores, statement) == {
        "count": 1.0,
        "shape": 0.0,
        "colour": 1.0,
        "background": 1.0,
        "background colours": 0.5,
    }


def test_a_probability_is_smooth_where_the_count_jumps() -> None:
    """Made-up scores: the stated shape has probability 1/2, one of two stated colours all of it."""
    scores = {name: np.full(len(classes), -np.inf, np.float32) for name, classes in ATTRIBUTES.items()}
    shapes, colours = ATTRIBUTES["shape"], ATTRIBUTES["background colours"]
    scores["shape"][[shapes.index("circle"), shapes.index("ring")]] = 3.0
    scores["background colours"][colours.index("red")] = 1.0
    statement = {"shape": ("circle",), "background colours": ("red", "blue")}
    assert stated_probability(scores, statement) == {"shape": 0.5, "background colours": 0.5}
    scores["background colours"][colours.index("blue")] = 1.0
    assert stated_probability(scores, statement)["background colours"] == 1.0


def test_probabilities_and_shapes_of_scenes(scenes) -> None:
    pictures, prompts = scenes
    sure, other = (probability_of_the_stated(pictures, told) for told in (prompts, [*prompts[1:], prompts[0]]))
    assert 90 < np.mean(sure) < 100 and np.mean(other) < 50
    assert len(set(sure)) == len(sure), "no two pictures are equally sure"
    each = attribute_shares(pictures, prompts)
    expected = [np.mean([100 * share for name, share in shares.items() if name.endswith("shape")]) for shares in each]
    assert shape_accuracy(pictures, prompts) == pytest.approx(expected)
    assert {0.0, 50.0, 100.0} >= set(expected)
    assert np.mean(expected) < np.mean(attribute_accuracy(pictures, prompts))
