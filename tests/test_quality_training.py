"""What the classifier learns from, its loss, and that a short training writes usable weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.classifier_pictures import Pool, augment, targets
from benchmarks.train_classifier import loss, train
from ralu_cache.quality.classifier import SceneClassifier
from ralu_cache.quality.scene_prompts import ATTRIBUTES

PROMPT = "a small red circle on a blue and white striped background"


def test_targets_weigh_the_stated_classes() -> None:
    (row,) = targets([PROMPT])
    classes = [(name, value) for name, values in ATTRIBUTES.items() for value in values]
    told = {pair: weight for pair, weight in zip(classes, row.tolist(), strict=True) if weight}
    assert told == {
        ("count", "one"): 1,
        ("shape", "circle"): 1,
        ("colour", "red"): 1,
        ("size", "small"): 1,
        ("background", "striped"): 1,
        ("background colours", "blue"): 0.5,
        ("background colours", "white"): 0.5,
    }


def test_the_loss_counts_only_what_is_stated() -> None:
    wanted = targets([PROMPT])
    certain = 50 * wanted
    assert loss(certain, wanted).item() == pytest.approx(np.log(2) / 6, abs=1e-4)  # two colours share one answer
    start = sum(map(len, list(ATTRIBUTES.values())[:4]))  # the place is left open
    unsaid = certain.clone()
    unsaid[:, start : start + len(ATTRIBUTES["place"])] = torch.randn(5)
    assert loss(unsaid, wanted) == loss(certain, wanted)


def test_augmented_pictures_stay_pictures() -> None:
    pictures = torch.rand(7, 3, 32, 32)
    changed = augment(pictures, torch.Generator().manual_seed(0))
    assert changed.shape == pictures.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert torch.equal(changed, augment(pictures, torch.Generator().manual_seed(0)))
    assert not torch.equal(changed, augment(pictures, torch.Generator().manual_seed(1)))


def test_a_short_training_writes_weights_that_load(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.train_classifier.BATCH", 4)
    pool = Pool(np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), np.uint8), targets([PROMPT] * 8))
    went = train(SceneClassifier(), pool, minutes=0.02, folder=tmp_path)
    assert went["steps"] > 0
    weights = load_file(tmp_path / "model.safetensors")
    SceneClassifier().load_state_dict({name: value.float() for name, value in weights.items()})
