"""Agreement of the measures with the eye: twenty pairs of pictures of one prompt each, judged blind.

    python -m benchmarks.regime.eye --sheet pairs.png       # draws the pairs, A left and B right, without saying which
    python -m benchmarks.regime.eye                         # holds the answers in eye.json against the measures

A pair is two of the runs of `benchmarks.regime.measures` (14 to 2 steps, or the full run of another seed), drawn at
random. eye.json holds for each pair "A", "B" or "=": the one that shows better what its prompt says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.regime.measures import LABELS, MEASURES, OUT, STEPS, Measure, good, runs
from benchmarks.regime.pictures import SHELF, Shelf, scene_prompts, to_bytes
from ralu_cache.quality.base import Pictures
from ralu_cache.report.table import Table

PAIRS, SEED = 20, 7
SCALE, COLUMNS = 2, 4


@dataclass(frozen=True)
class Pair:
    """Which prompt, and the runs that its left (A) and right (B) picture are of."""

    prompt: int
    a: str
    b: str


def pairs(prompts: int, names: Sequence[str]) -> list[Pair]:
    """The twenty pairs; every call gives the same ones."""
    rng = np.random.default_rng(SEED)
    chosen = []
    for prompt in rng.permutation(prompts)[:PAIRS]:
        a, b = rng.permutation(len(names))[:2]
        chosen.append(Pair(int(prompt), names[a], names[b]))
    return chosen


def sheet(shown: Mapping[str, Pictures], chosen: Sequence[Pair], prompts: Sequence[str]) -> Image.Image:
    """All pairs, numbered from 1, each under its prompt."""
    size, text = shown[chosen[0].a].shape[1] * SCALE, 30
    width, height = 2 * size + 12, size + text
    rows = -(-len(chosen) // COLUMNS)
    image = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(image)
    for number, pair in enumerate(chosen):
        x, y = number % COLUMNS * width, number // COLUMNS * height
        draw.text((x + 2, y + 2), f"{number + 1}: {prompts[pair.prompt]}"[:95], fill="black")
        for side, run in enumerate((pair.a, pair.b)):
            picture = Image.fromarray(to_bytes(shown[run][pair.prompt])).resize((size, size), Image.Resampling.BICUBIC)
            image.paste(picture, (x + side * (size + 4), y + text - 12))
    return image


def preference(measure: Measure, shown: Mapping[str, Pictures], pair: Pair, full: str, prompts: Sequence[str]) -> float:
    """How much better A is than B in the measure's eyes; 0 where it sees no difference."""
    one = slice(pair.prompt, pair.prompt + 1)
    a, b = (
        good(measure, float(np.ravel(measure.of(shown[run][one], shown[full][one], prompts[one]))[0]))
        for run in (pair.a, pair.b)
    )
    return a - b


def agreement(preferred: Sequence[float], answers: Sequence[str]) -> float:
    """Share of the pairs that the eye decided on which the measure decides alike; undecided counts as half."""
    decided = [(value, 1 if answer == "A" else -1) for value, answer in zip(preferred, answers, strict=True)
               if answer != "="]  # fmt: skip
    return float(np.mean([(1 + np.sign(value) * side) / 2 for value, side in decided]))


def table(shares: Mapping[str, float], answers: Sequence[str]) -> str:
    """The Markdown page, the best first."""
    decided = sum(answer != "=" for answer in answers)
    rows = [(LABELS[name], f"{share:.0%}") for name, share in sorted(shares.items(), key=lambda item: -item[1])]
    lines = [
        "# Agreement of single pictures' measures with the eye",
        "",
        f"{len(answers)} pairs of tiny FLUX at guidance 6 (`python -m benchmarks.regime.eye`), each looked at once,",
        f"not told which is which; {decided} were decided, the others looked equally well drawn. Undecided by the",
        f"measure counts as half. Standard error near 80 %: {100 * (0.16 / max(decided, 1)) ** 0.5:.0f} points.",
        "",
        Table(("measure", "decides as the eye does"), rows).markdown(),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, help="draw the pairs here (PNG) and do nothing else")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--shelf", type=Path, default=SHELF)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prompts, full = scene_prompts("train", options.prompts), str(max(STEPS))
    shelf = Shelf(options.shelf)
    shown = {name: shelf.pictures(run, options.prompts) for name, run in runs(options.guidance).items()}
    chosen = pairs(options.prompts, [name for name in shown if name != full])
    if options.sheet:
        sheet(shown, chosen, prompts).save(options.sheet)
        return
    answers = json.loads((options.out / "eye.json").read_text())
    shares = {
        name: agreement([preference(measure, shown, pair, full, prompts) for pair in chosen], answers)
        for name, measure in MEASURES.items() if name != "gradient"  # of one picture alone it has no mean to go by
    }  # fmt: skip
    (options.out / "eye.md").write_text(table(shares, answers))
    print(table(shares, answers))


if __name__ == "__main__":
    main()
