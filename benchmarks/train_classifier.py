"""Trains the scene classifier, which judges whether a picture shows what its prompt states.

    python -m benchmarks.train_classifier [--minutes 16] [--trunk FILE] [--out ralu_cache/tiny_flux/classifier]

On rendered scenes, a share of them after the model's own autoencoder, all augmented (`classifier_pictures`). Saves the
weights every two minutes, so a run that is cut short is usable. `benchmarks.classifier_accuracy` then measures them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.classifier_pictures import Pool, render_pool
from benchmarks.tiny_flux.budget import Budget, learning_rate_factor
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.quality.classifier import SceneClassifier, classifier_folder
from ralu_cache.quality.scene_prompts import ATTRIBUTES

SEED = 31
RATE, BATCH = 3e-3, 64
SAVE_EVERY = 120.0  # seconds


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the stated attributes, (B, sum of classes) each; those that are not stated do not count."""
    sizes = [len(classes) for classes in ATTRIBUTES.values()]
    logs = torch.cat([part.log_softmax(1) for part in scores.split(sizes, 1)], 1)
    return -(targets * logs).sum() / targets.sum()


def train(network: SceneClassifier, pool: Pool, minutes: float, folder: Path) -> dict[str, float]:
    """Trains for `minutes` of active time, saves into `folder`; returns how long and how well it went."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02)
    budget, saved, running = Budget(minutes), 0.0, None
    network.train()
    for pictures, targets in pool.batches(BATCH, SEED):
        rate = RATE * learning_rate_factor(budget.step, budget.fraction, warmup=50, hold=0.3)
        for group in optimiser.param_groups:
            group["lr"] = rate
        error = loss(network(pictures), targets)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        budget.tick()
        running = error.item() if running is None else 0.98 * running + 0.02 * error.item()
        if budget.step % 50 == 0:
            print(f"step {budget.step}: loss {running:.4f}, {budget.left()}", flush=True)
        if budget.seconds - saved > SAVE_EVERY or budget.fraction >= 1:
            save(network, folder)
            saved = budget.seconds
        if budget.fraction >= 1:
            break
    return {"steps": budget.step, "batch": BATCH, "active minutes": round(budget.seconds / 60, 1), "loss": running or 0}


def save(network: SceneClassifier, folder: Path) -> None:
    """Writes the weights as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    halves = {n: (v.half() if v.is_floating_point() else v).contiguous() for n, v in state.items()}
    save_file(halves, folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=16.0, help="of training, without rendering")
    parser.add_argument("--scenes", type=int, default=20000)
    parser.add_argument("--decoded", type=int, default=5000, help="scenes that also go through the autoencoder")
    parser.add_argument("--trunk", type=Path, help="an earlier run's model.safetensors; starts from its trunk")
    parser.add_argument("--out", type=Path, default=classifier_folder())
    options = parser.parse_args()
    torch.manual_seed(SEED)
    pool = render_pool(options.scenes, options.decoded, TINY_FLUX.load().vae, SEED)
    network = SceneClassifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.trunk:
        earlier = load_file(options.trunk).items()
        trunk = {name.removeprefix("trunk."): value for name, value in earlier if name.startswith("trunk.")}
        network.trunk.load_state_dict(trunk)
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)
    went = train(network, pool, options.minutes, options.out)
    told = {"scenes": options.scenes, "decoded": options.decoded, "trunk of an earlier run": bool(options.trunk)}
    about = {"training": told | went}
    (options.out / "classifier.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
