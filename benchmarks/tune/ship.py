"""The profiles that come with the library: embedded models at 20, 28 and 50 steps, guided and unguided.

    python -m benchmarks.tune.ship --model tiny-flux [--steps 20 28 50] [--scales 6 1] [--minutes 15]

For every number of steps and guidance scale a study of its own on prompts of the split "train" that no table reports,
--minutes of it for each (the call goes on where it stopped; what has its front is left out, unless --again). Judged by
the probability that the scene classifier gives to what the prompt states; cost in FLOPs, for the machine is shared. The
fronts of a model go into one file, `ralu_cache/profiles`, where `accelerate(pipe, speedup=...)` finds them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.setting import load
from benchmarks.tune.search import OUT, STRONG, call_of
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.profiles.facts import Facts, Model, with_defaults
from ralu_cache.profiles.finding import shipped_file
from ralu_cache.profiles.profile import read_profile
from ralu_cache.tune import tune
from ralu_cache.tune.command import describe

STEPS, SCALES = (20, 28, 50), (STRONG, 1.0)
IMAGES = [name for name, model in EMBEDDED.items() if model.output == "images"]
QUALITY = "probability"


def has_front(path: Path, call: Facts) -> bool:
    """Whether the file has one for calls like this."""
    return path.exists() and any(front.call.matches(call) for front in read_profile(path).fronts)


def ship(
    model: str, steps: int, scale: float, minutes: float, prompts: int, studies: Path, out: Path, again: bool
) -> str:
    """Tunes for one call, and adds its front to the file; what there is to say of it."""
    pipe, call = load(model), call_of(model, steps, scale)
    name = f"{model}, {steps} steps, guidance {scale:g}"
    if not again and has_front(out, Facts.of(pipe, with_defaults(pipe, call), steps)):
        return f"{name}: there"
    study = studies / f"ship-{model}-{steps}-{scale:g}"
    found = tune(
        pipe, scene_prompts("train", prompts), call, minutes, quality=QUALITY, cost="flops", batch=8, study=study,
        out=out, name=model,
    )  # fmt: skip
    return f"{name}\n{describe(found, model)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=IMAGES, default=IMAGES[0])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--studies", type=Path, default=OUT)
    parser.add_argument("--out", type=Path, help="the profile's file, if not the library's")
    parser.add_argument("--again", action="store_true", help="go on with studies whose fronts are there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out = options.out or shipped_file(Model.of(load(options.model)))
    for scale in options.scales:
        for steps in options.steps:
            given = (options.minutes, options.prompts, options.studies, out, options.again)
            print(ship(options.model, steps, scale, *given), flush=True)


if __name__ == "__main__":
    main()
