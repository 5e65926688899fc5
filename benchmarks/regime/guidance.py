"""The highest guidance at which the full run of a model still draws as well as at any other.

    python -m benchmarks.regime.guidance [--models tiny-flux tiny-sd3] [--prompts 32] [--scales 3 4.5 6 8 10]

Plain stock pipelines, 50 steps, prompts of the split "train", the same seeds at every scale. A scale draws as well as
the best one if the paired bootstrap interval (95 %) of the difference in attribute accuracy holds 0. That scale is the
regime in which methods are compared: what a user with strong guidance sees. Resumable, model by model; writes
guidance.json and guidance.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.regime.drawing import JUDGES, intervals, judged
from benchmarks.regime.measures import OUT
from benchmarks.regime.options import read
from benchmarks.regime.pictures import PlainRun, Shelf, scene_prompts, sheet
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.report.table import Bold, Table

SCALES = (3.0, 4.5, 6.0, 8.0, 10.0)
STEPS = 50
DECIDES = "attributes"


def highest(values: Mapping[float, Sequence[float]]) -> float:
    """The highest scale whose pictures' values (N,), paired, are not told to be worse than those of the best scale."""
    best = max(values, key=lambda scale: np.mean(values[scale]))
    differences = {scale: bootstrap(np.subtract(each, values[best])) for scale, each in values.items()}
    return max(scale for scale, difference in differences.items() if difference.high >= 0)


def study(shelf: Shelf, model: str, scales: Sequence[float], count: int, pictures: Path | None) -> dict[str, Any]:
    """What `guidance.json` keeps of one model. pictures: where a sheet of samples goes, a row for each scale."""
    prompts = scene_prompts("train", count)
    runs = {scale: PlainRun(model, scale, STEPS) for scale in sorted(scales)}
    shown = {scale: shelf.pictures(run, count) for scale, run in runs.items()}
    each = {scale: judged(drawn, prompts) for scale, drawn in shown.items()}
    if pictures:
        rows = {f"{scale:g}": drawn for scale, drawn in shown.items()}
        Image.fromarray(sheet(rows, 10)).quantize(160).save(pictures, optimize=True)
    return {
        "prompts": count, "steps": STEPS, "run": next(iter(runs.values())).name,
        "highest": highest({scale: found[DECIDES] for scale, found in each.items()}),
        "scales": {f"{scale:g}": intervals(found) for scale, found in each.items()},
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """The Markdown page: a row for each model and scale, the chosen scale in bold."""
    judges = {judge.name: f"{judge.info.label}, {judge.info.unit}" for judge in JUDGES}
    lines = [
        "# The highest guidance at which the full run still draws as well as at any other",
        "",
        "Plain stock pipelines, 50 steps, the same prompts (split \"train\") and seeds at every scale; 95 % bootstrap",
        "intervals over pictures. Bold: the highest scale whose attribute accuracy is not told from the best scale's",
        "by a paired interval. Made by `python -m benchmarks.regime.guidance`.",
        "",
    ]  # fmt: skip
    rows = []
    for model, one in found.items():
        for scale, values in one["scales"].items():
            shown = Bold(scale) if float(scale) == one["highest"] else scale
            cells = [f"{v['value']:.1f} ({v['low']:.1f} – {v['high']:.1f})" for v in (values[name] for name in judges)]
            rows.append([model, str(one["prompts"]), shown, *cells])
    titles = ("model", "prompts", "guidance", *judges.values())
    return "\n".join([*lines, Table(titles, rows).markdown()]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    images = [name for name, model in EMBEDDED.items() if model.output == "images"]
    parser.add_argument("--models", nargs="+", choices=images, default=images)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    options = read(parser, arguments, OUT)
    record = options.out / "guidance.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    for model in options.models:
        picture = options.out / f"guidance-{model}.png"
        found[model] = study(Shelf(options.shelf), model, options.scales, options.prompts, picture)
        record.write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "guidance.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
