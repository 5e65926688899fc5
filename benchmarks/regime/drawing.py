"""How well a model draws what prompts state: counts, probabilities, shapes, with intervals.

    python -m benchmarks.regime.drawing --model tiny-sd3 [--folder DIR] [--guidance 6] [--prompts 64] [--split held-out]

Plain pipeline; the judge is the scene classifier. Resumable: drawn pictures stay in --shelf.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.regime.pictures import SHELF, SPLITS, PlainRun, Shelf, scene_prompts, sheet
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.attributes import SCENE_METRICS
from ralu_cache.quality.base import MetricInfo, Pictures, Reading
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.quality.texture import mean_gradient

SHARPNESS = Reading(
    "sharpness", MetricInfo("mean gradient", "‰"), lambda shown, _: [1000 * value for value in mean_gradient(shown)]
)
"""More is sharper, which is good up to the full run's value only."""
JUDGES = (*SCENE_METRICS, SHARPNESS)


def judged(pictures: Pictures, prompts: Sequence[str]) -> dict[str, list[float]]:
    """For each judge its value of every picture (B, Y, X, 3)."""
    return {judge.name: judge(pictures, None, prompts) for judge in JUDGES}


def intervals(each: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Mean and bounds of its 95 % bootstrap interval, per judge."""
    return {name: rounded(asdict(bootstrap(values))) for name, values in each.items()}


def rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in numbers.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    images = [name for name, model in EMBEDDED.items() if model.output == "images"]
    parser.add_argument("--model", choices=images, required=True)
    parser.add_argument("--folder", type=Path, help="a saved pipeline of this model (the shipped one)")
    parser.add_argument("--guidance", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--split", choices=SPLITS, default="held-out")
    parser.add_argument("--out", type=Path, help="write the figures here (JSON)")
    parser.add_argument("--sheet", type=Path, help="write the first 16 pictures here (PNG)")
    parser.add_argument("--shelf", type=Path, default=SHELF)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    run = PlainRun(options.model, options.guidance, options.steps, options.split, folder=options.folder)
    pictures = Shelf(options.shelf).pictures(run, options.prompts)
    found = intervals(judged(pictures, scene_prompts(options.split, options.prompts)))
    setting = {"run": run.name, "prompts": options.prompts}
    print(json.dumps(setting | found, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(setting | found, indent=1) + "\n")
    if options.sheet:
        Image.fromarray(sheet({"": pictures, " ": pictures[8:]}, 8)).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
