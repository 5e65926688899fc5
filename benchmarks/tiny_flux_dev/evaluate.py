"""Honest evaluation of tiny FLUX dev beside its teacher: likeness of the same seeds' pictures, and what they show.

    python -m benchmarks.tiny_flux_dev.evaluate [--folder DIR] [--prompts 64] [--guidance 3 6] [--out evaluation.json]

The teacher's picture is that of tiny FLUX with true CFG, an empty negative prompt and 50 steps; prompts of the split
"held-out", which neither training nor studies use. Resumable: drawn pictures stay in --shelf.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.regime.drawing import intervals, judged, rounded
from benchmarks.regime.pictures import SHELF, PlainRun, Shelf, scene_prompts, sheet
from ralu_cache.models.embedded import TINY_FLUX, TINY_FLUX_DEV
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.quality.likeness import psnr


def compare(shelf: Shelf, guidance: float, steps: int, count: int, folder: Path | None) -> dict[str, Any]:
    """PSNR in dB, and the judges' means of both models and of the paired difference, with 95 % intervals."""
    prompts = scene_prompts("held-out", count)
    runs = {
        TINY_FLUX.name: PlainRun(TINY_FLUX.name, guidance, steps, "held-out"),
        TINY_FLUX_DEV.name: PlainRun(TINY_FLUX_DEV.name, guidance, steps, "held-out", folder=folder),
    }
    shown = {name: shelf.pictures(run, count) for name, run in runs.items()}
    teacher, student = shown.values()
    each = {name: judged(pictures, prompts) for name, pictures in shown.items()}
    taught, learnt = each.values()
    return {
        "psnr": rounded(asdict(bootstrap(psnr(student, teacher)))),
        "psnr of the mean squared error": round(-10 * float(np.log10(np.square(student - teacher).mean())), 2),
        **{name: intervals(values) for name, values in each.items()},
        "difference": {
            name: rounded(asdict(bootstrap(np.subtract(learnt[name], taught[name])))) for name in learnt
        },
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a saved pipeline (the shipped one)")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 6.0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the figures here (JSON)")
    parser.add_argument("--sheet", type=Path, help="write samples here (PNG): per guidance the teacher's row above")
    parser.add_argument("--shelf", type=Path, default=SHELF)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    shelf, rows, found = Shelf(options.shelf), {}, {}
    for guidance in options.guidance:
        found[f"{guidance:g}"] = compare(shelf, guidance, options.steps, options.prompts, options.folder)
        print(json.dumps({f"{guidance:g}": found[f"{guidance:g}"]}, indent=1), flush=True)
        for model, folder in ((TINY_FLUX, None), (TINY_FLUX_DEV, options.folder)):
            run = PlainRun(model.name, guidance, options.steps, "held-out", folder=folder)
            rows[run.name] = shelf.pictures(run, min(options.prompts, 10))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        setting = {"prompts": options.prompts, "steps": options.steps, "guidance": found}
        options.out.write_text(json.dumps(setting, indent=1) + "\n")
    if options.sheet:
        Image.fromarray(sheet(rows, 10)).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
