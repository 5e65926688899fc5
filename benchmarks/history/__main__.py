"""What a history of predictions gives over a change of resolution, by likeness, and where reuse pays in the regime.

    python -m benchmarks.history --part likeness --model tiny-flux --guidance 1 [--split held-out] [--prompts 16]
    python -m benchmarks.history --part cures --guidance 3 [--split held-out] [--prompts 16]
    python -m benchmarks.history --part regime --model tiny-flux [--split train] [--prompts 32] [--only WORDS ...]
    python -m benchmarks.history --table

Resumable: what was drawn stays in --shelf, what was measured in --out, one line a setting with a value for each
picture. --table writes the page and the plot from what was measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.history import likeness, regime
from benchmarks.history.page import write
from benchmarks.history.runs import Bench, Setting
from benchmarks.regime.pictures import SHELF, SPLITS, Shelf

OUT = Path("benchmarks/results/history")


def measured(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers with four digits, which say what pictures say."""

    def short(value: Any) -> Any:
        if isinstance(value, str | dict):
            return value
        if isinstance(value, float | int):
            return float(f"{value:.4g}")
        return [short(float(each)) for each in value]

    return {name: short(value) for name, value in row.items()}


def study(part: str, bench: Bench, shelf: Shelf, out: Path, only: Sequence[str]) -> None:
    """Draw and measure what is missing of a part."""
    settings: dict[str, Callable[[], Iterable[Setting]]] = {
        "likeness": lambda: (*likeness.forecasts(), *likeness.solvers()),
        "cures": likeness.cures,
        "regime": regime.settings,
    }
    measure = regime.measure if part == "regime" else likeness.measure
    path = out / f"{part}_{bench.name}.jsonl"
    known = {row["name"] for row in measured(path)}
    for setting in settings[part]():
        if setting.name in known or (only and not any(words in setting.name for words in only)):
            continue
        row = rounded(measure(bench, shelf, setting))
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(bench.name, setting.name, f"{row['cost']:.2f}x", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("likeness", "cures", "regime"))
    parser.add_argument("--model", choices=("tiny-flux", "tiny-sd3"), default="tiny-flux")
    parser.add_argument("--guidance", type=float, help="1 is unguided (6 in the regime)")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--only", nargs="+", default=(), help="settings whose names hold one of these")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--shelf", type=Path, default=SHELF)
    options = parser.parse_args(arguments)
    if options.part is None and not options.table:
        parser.error("give --part, --table or both")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        guidance = options.guidance or (regime.GUIDANCE if options.part == "regime" else 1.0)
        bench = Bench(options.model, guidance, options.split, options.prompts, options.shelf / "history")
        study(options.part, bench, Shelf(options.shelf), options.out, options.only)
    if options.table:
        write(options.out)


if __name__ == "__main__":
    main()
