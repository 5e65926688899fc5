"""What a step costs at which the model is not called: the work on the canvas, beside a step of the smallest model.

    python -m benchmarks.history.cost [--out benchmarks/results/history/cost.json]

Shapes of a picture of 1024x1024: latents (1, 16, 128, 128). The step that it is compared with is tiny FLUX's own on the
4096 tokens of such a picture, one thread of a CPU; any model that is used costs hundreds of times as much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.regime.pictures import load
from ralu_cache import Forecast, Multistep
from ralu_cache.engine.predictions import Prediction, predictions_of
from ralu_cache.history.nodes import Predictions
from ralu_cache.plane.canvas import TokenLayout

SHAPE = (1, 16, 128, 128)
REPEATS = 9
OUT = Path("benchmarks/results/history/cost.json")


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median of several runs, after one that does not count."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def filled(policy: Forecast, solver: Multistep | None, layout: TokenLayout) -> Prediction:
    """Predictions of a run that has computed often enough."""
    prediction = predictions_of(policy, solver, 2)
    assert prediction is not None
    x = torch.randn(SHAPE)
    for level in (0.9, 0.8, 0.7, 0.6):
        x, _ = prediction.take(x, torch.randn(SHAPE), level, layout, True)
    return prediction


def measure() -> dict[str, float]:
    """Milliseconds, by what is done."""
    layout, coarse = TokenLayout.fine(1, 32, 32, 2), TokenLayout.coarse(1, 32, 32, 2)
    x = torch.randn(SHAPE)
    forecast, solved = filled(Forecast(3), None, layout), filled(Forecast(3), Multistep(2), layout)

    def euler() -> Tensor:
        return x - 0.1 * forecast.velocity(x, 0.5, layout)

    def keep() -> Predictions:
        known = forecast.known
        assert known is not None
        return known.record(x, x, 0.5)

    moved = filled(Forecast(3), None, coarse).known
    assert moved is not None
    transformer = load("tiny-flux", None).transformer
    config = transformer.config
    ids = torch.zeros(4096, 3)
    call = {
        "hidden_states": torch.randn(1, 4096, config.in_channels),
        "encoder_hidden_states": torch.randn(1, 16, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim), "timestep": torch.tensor([0.5]),
        "img_ids": ids, "txt_ids": torch.zeros(16, 3),
    }  # fmt: skip
    with torch.inference_mode():
        found = {
            "forecast step": seconds(euler),
            "multistep step": seconds(lambda: solved.leap(x, 0.5, 4, layout)),
            "keeping a node": seconds(keep),
            "transfer of four nodes": seconds(lambda: moved.transfer(layout, lambda noise: 0.5 * noise)),
            "computed step of tiny-flux": seconds(lambda: transformer(**call), 3),
        }
    return {name: round(1000 * value, 3) for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measure()
    whole = found["computed step of tiny-flux"]
    shares = {f"{name}, % of it": round(100 * value / whole, 3) for name, value in found.items() if value != whole}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found | shares, indent=1) + "\n")
    print(json.dumps(found | shares, indent=1))


if __name__ == "__main__":
    main()
