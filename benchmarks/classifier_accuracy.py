"""How far the scene classifier can be trusted, and the statistics of real renders for the Fréchet distance.

    python -m benchmarks.classifier_accuracy [--renders 2000] [--statistics 5000] [--prompts 32]

Attribute accuracy on fresh renders, sharp and after the model's autoencoder; the same with prompts of other pictures;
and on the model's own 50-step samples, where the model's mistakes and the classifier's cannot be told apart. Completes
classifier.json beside the weights; writes accuracy.json, and samples.png to look at, into --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classifier_pictures import round_trip
from benchmarks.lab import GUIDANCE, Lab, strip
from benchmarks.tiny_flux.render import render
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache.quality.attributes import attribute_shares
from ralu_cache.quality.base import Pictures
from ralu_cache.quality.classifier import classifier_folder
from ralu_cache.quality.frechet import Gaussian, distance_to_renders
from ralu_cache.quality.scene_prompts import ATTRIBUTES

SEED, STATISTICS_SEED = 32, 33
SET_SIZES = (32, 64, 128, 256, 512)
STEPS = 50


def renders(count: int, seed: int) -> tuple[Pictures, list[str]]:
    """Rendered scenes of the grammar (count, 128, 128, 3) in [0, 1], and their prompts."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    pictures = np.stack([render(scene) for scene in scenes]).astype(np.float32) / np.float32(255)
    return pictures, [scene.prompt for scene in scenes]


def accuracy(pictures: Pictures, prompts: Sequence[str]) -> dict[str, float]:
    """Percent right: over all that is stated (mean over pictures, as the metric has it), and for each attribute."""
    shares = attribute_shares(pictures, prompts)
    row = {"all": float(np.mean([np.mean(list(each.values())) for each in shares]))}
    row["pictures wholly right"] = float(np.mean([min(each.values()) == 1 for each in shares]))
    for name in ATTRIBUTES:
        stated = [each[name] for each in shares if name in each]
        if stated:
            row[name] = float(np.mean(stated))
    return {name: round(100 * value, 1) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renders", type=int, default=2000)
    parser.add_argument("--statistics", type=int, default=5000, help="renders for the Fréchet distance")
    parser.add_argument("--prompts", type=int, default=32, help="pictures that the model samples")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/classifier"))
    options = parser.parse_args()
    lab, metric = Lab(options.prompts), distance_to_renders()

    many, _ = renders(options.statistics, STATISTICS_SEED)
    Gaussian.fit(metric.features(round_trip(lab.pipe.vae, many), [])).save(classifier_folder())

    sharp, prompts = renders(options.renders, SEED)
    decoded = round_trip(lab.pipe.vae, sharp)
    accuracies = {
        "renders": accuracy(sharp, prompts),
        "renders after the autoencoder": accuracy(decoded, prompts),
        "the same with the next picture's prompt": accuracy(decoded, [*prompts[1:], prompts[0]]),
    }
    features = metric.features(decoded, prompts)
    distances: dict[str, Any] = {
        f"{size} renders after the autoencoder": metric.value(features[:size]) for size in SET_SIZES
    }
    samples = {guidance: lab.images(STEPS, guidance) for guidance in GUIDANCE}
    for guidance, images in samples.items():
        pictures = images.permute(0, 2, 3, 1).numpy()
        accuracies[f"{STEPS}-step samples, {guidance}"] = accuracy(pictures, lab.prompts)
        distances[f"{len(pictures)} samples, {guidance}"] = metric.value(metric.features(pictures, lab.prompts))

    path = classifier_folder() / "classifier.json"
    about = json.loads(path.read_text()) | {
        "measured on": {name: getattr(options, name) for name in ("renders", "statistics", "prompts")},
        "accuracy in percent": accuracies,
        "frechet": {name: round(value, 3) for name, value in distances.items()},
    }
    text = json.dumps(about, indent=1) + "\n"
    path.write_text(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy.json").write_text(text)
    strip(samples, options.out / "samples.png")
    print(text)


if __name__ == "__main__":
    main()
