"""Tune an embedded model at strong guidance, on prompts that nothing is reported on.

    python -m benchmarks.tune.search --model tiny-flux --quality probability [--minutes 15] [--steps 50]

The transformer computes in bfloat16 with nothing compiled; speed is judged by FLOPs, for the machine is shared. What
was found is judged on other prompts by `benchmarks.tune.study`. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.setting import load
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.tune import tune
from ralu_cache.tune.command import describe
from ralu_cache.tune.run import Tuned

STRONG = 6.0
MODELS = ("tiny-flux", "tiny-flux-dev", "tiny-sd3")
OUT = Path("out/tune")


def call_of(model: str, steps: int, scale: float = STRONG) -> dict[str, Any]:
    """The call that is tuned for."""
    embedded = EMBEDDED[model]
    name = next(name for name in embedded.arguments if name.endswith("_scale"))
    size = {"height": embedded.size, "width": embedded.size}
    return {**embedded.arguments, **size, name: scale, "negative_prompt": "", "num_inference_steps": steps}


def search(
    model: str, quality: str, minutes: float, prompts: int, steps: int, out: Path, trials: int | None = None
) -> Tuned:
    """A study of its own for each model, quality and number of steps. trials: at most so many."""
    folder = out / f"{model}-{quality}-{steps}"
    return tune(
        load(model), scene_prompts("train", prompts), call_of(model, steps), minutes, quality=quality, cost="flops",
        batch=8, study=folder, out=folder / "profile.json", name=model, trials=trials,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--quality", default="perceptual")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--trials", type=int, help="stop after so many, if the time is not over before")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = search(
        options.model, options.quality, options.minutes, options.prompts, options.steps, options.out, options.trials
    )
    print(describe(found, options.model))


if __name__ == "__main__":
    main()
