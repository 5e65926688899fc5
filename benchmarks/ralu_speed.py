"""Does the wall-clock follow the FLOPs? RALU presets, or any methods, against the full run, where tokens rule.

    python -m benchmarks.ralu_speed [--rounds 5] [--out benchmarks/results/ralu]
    python -m benchmarks.ralu_speed --stacked --out benchmarks/results/composition

The embedded model at batch 4 with 128x128 pixels, and at batch 1 with 256x256 (1024 tokens; a size for timing only,
the model was not trained on it). All runs take turns, warm-up excluded; a ratio is the median over rounds of the full
50-step run's time over the method's. Runs end with the latents: text encoding counts, the autoencoder does not. Beside
the presets stands a plain run with as many full-resolution steps as "ralu-4x" has in all. `--stacked` times instead
what the composition study compares. Writes speed.json, speed.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.composition import both
from benchmarks.lab import Lab
from ralu_cache import accelerate
from ralu_cache.report.table import Table
from ralu_cache.sweep.methods import parse_method

STEPS = 50
PRESETS = ("ralu-4x", "ralu-5x", "ralu-7x")
PLAIN = 18
SETTINGS = ((4, 128), (1, 256))
STACKED = (
    "ralu-4x", *both("5/2/2", "5/6/3"), "ralu-4x+adaptive:2,ratio=0.3", "ralu-4x+toca:2",
    "ralu-7x", *both("2/3/2", plan="ralu-7x"),
)  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """Ratios over the full run; `share` is wall-clock ratio over FLOP ratio."""

    batch: int
    size: int
    method: str
    wall_ratio: float
    spread: tuple[float, float]
    flop_ratio: float
    share: float


def seconds(lab: Lab, method: str | None, steps: int, batch: int, size: int) -> tuple[float, float]:
    """(wall-clock seconds, FLOP ratio) of one run; the FLOP ratio of a plain run is that of its steps."""
    if method is None:
        start = time.perf_counter()
        lab.latents(steps, batch, size)
        return time.perf_counter() - start, STEPS / steps
    parts = parse_method(method).parts
    with accelerate(lab.pipe, **parts) as handle:
        start = time.perf_counter()
        lab.latents(steps, batch, size)
        taken = time.perf_counter() - start
        assert handle.report is not None
        return taken, handle.report.flop_ratio


def measure(lab: Lab, rounds: int, chosen: Sequence[str]) -> list[Speed]:
    found = []
    for batch, size in SETTINGS:
        methods = [("full run", None, STEPS), (f"{PLAIN} plain steps", None, PLAIN)]
        methods += [(name, name, STEPS) for name in chosen]
        times: dict[str, list[float]] = {name: [] for name, *_ in methods}
        flops: dict[str, float] = {}
        for turn in tqdm(range(rounds + 1), desc=f"batch {batch}, {size} px"):
            for name, method, steps in methods:
                taken, flops[name] = seconds(lab, method, steps, batch, size)
                if turn:
                    times[name].append(taken)
        for name, *_ in methods[1:]:
            ratios = sorted(a / b for a, b in zip(times["full run"], times[name], strict=True))
            wall = statistics.median(ratios)
            spread = (ratios[0], ratios[-1])
            found.append(Speed(batch, size, name, wall, spread, flops[name], wall / flops[name]))
    return found


def table(rows: list[Speed]) -> str:
    titles = ("batch", "pixels", "method", "wall-clock", "range", "FLOPs", "wall-clock / FLOPs")
    cells = [
        (str(r.batch), str(r.size), r.method, f"{r.wall_ratio:.2f}x", f"{r.spread[0]:.2f}-{r.spread[1]:.2f}",
         f"{r.flop_ratio:.2f}x", f"{r.share:.2f}")
        for r in rows
    ]  # fmt: skip
    return Table(titles, cells, left=(0, 1, 2, 4)).markdown() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stacked", action="store_true", help="with temporal caching")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ralu"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = measure(Lab(max(batch for batch, _ in SETTINGS)), options.rounds, STACKED if options.stacked else PRESETS)
    data = {"threads": torch.get_num_threads(), "rounds": options.rounds, "rows": [asdict(r) for r in rows]}
    (options.out / "speed.json").write_text(json.dumps(data, indent=1) + "\n")
    command = "python -m benchmarks.ralu_speed" + (" --stacked" if options.stacked else "")
    head = f"# Wall-clock against FLOPs\n\nOver the full {STEPS}-step run. Made by `{command}`.\n\n"
    (options.out / "speed.md").write_text(head + table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
