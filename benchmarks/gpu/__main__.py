"""Latency at real size: FLUX.1-dev's or SD3.5-large's architecture with random bf16 weights, one command.

    python -m benchmarks.gpu [--shape flux-dev] [--parts rows eager] [--seconds 540]
    python -m benchmarks.gpu --shape tiny --rounds 1          # the same on a CPU, to see that it works

Times whole pipeline calls (embeddings given, autoencoder included) in rounds in which all methods take turns, and the
steps in them, by stage and by computed, partial or reused; CUDA events, medians, one round of warm-up left out.
Parts, which run in this order:

    rows       a step of which some tokens are computed, in the fine and the mixed stage
    eager      every preset, temporal policy and composition, batch 1
    waits      how often each step makes the host wait for the device
    busy       the share of the time in which kernels are at work
    agreement  every way to compute a step against float64
    joints     on an embedded model: off is stock, half precision, offload, two threads
    batch      batch 4
    large      twice as many pixels a side
    compiled   with compile_repeated_blocks: latency, graphs

A part gets what is left of `--seconds`: no round begins that would end too late, and a part that comes too late is
left out. Each is written as it ends, and joins what was measured before on the same device. Which calls to make, and
how long they are thought to take, is in benchmarks/results/gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.forced import TRACES
from benchmarks.gpu.agreement import agreement
from benchmarks.gpu.compiled import compiled
from benchmarks.gpu.contestants import FULL, LARGE, PLAIN, Contestant, contestants, quick
from benchmarks.gpu.joints import joints
from benchmarks.gpu.latency import busy, measure, waits
from benchmarks.gpu.models import SHAPES, Shape, build, call_arguments
from benchmarks.gpu.page import page, plot
from benchmarks.gpu.rows import rows
from benchmarks.gpu.timing import Deadline
from ralu_cache.report.notices import silent
from ralu_cache.report.record import finite

WATCHED = (
    FULL, PLAIN, "ralu-8x", "+forecast:6", "+teacache:0.4", "+taylorseer:5", "ralu-8x+forecast:2",
    "ralu-4x+seacache:0.5", "ralu-4x+adaptive:2",
)  # fmt: skip
BATCH = 4
NO_GPU = {"skipped": "it takes a GPU"}
RESULTS = Path("benchmarks/results/gpu")


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    pipe: Any
    shape: Shape
    everyone: list[Contestant]
    few: list[Contestant]
    rounds: int
    deadline: Deadline

    def call(self, batch: int = 1, size: int | None = None) -> dict[str, Any]:
        return call_arguments(self.pipe, self.shape, batch, size or self.shape.size)

    @property
    def on_gpu(self) -> bool:
        return self.pipe.transformer.device.type == "cuda"

    def named(self, labels: Sequence[str]) -> list[Contestant]:
        return [contestant for contestant in self.everyone if contestant.label in labels]

    def latency(self, chosen: list[Contestant], call: dict[str, Any], rounds: int, note: str) -> dict[str, Any]:
        found = measure(self.pipe, chosen, call, rounds, note, self.deadline)
        return {"rows": found.rows, "rounds": found.rounds}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "rows": lambda b: rows(b.pipe, b.call(), b.rounds, b.deadline),
    "eager": lambda b: b.latency(b.everyone, b.call(), b.rounds, "eager"),
    "waits": lambda b: {"waits": waits(b.pipe, b.named(WATCHED), b.call())} if b.on_gpu else NO_GPU,
    "busy": lambda b: {"busy": busy(b.pipe, b.named(WATCHED), b.call())} if b.on_gpu else NO_GPU,
    "agreement": lambda b: agreement(b.shape, b.pipe.transformer.device),
    "joints": lambda b: joints(b.pipe.transformer.device),
    "batch": lambda b: b.latency(b.few, b.call(BATCH), 1, f"batch {BATCH}"),
    "large": lambda b: b.latency(b.named(LARGE), b.call(size=b.shape.large), 1, "large"),
    "compiled": lambda b: compiled(b.pipe, b.everyone, b.call(), b.rounds, b.deadline),
}


def begin(shape: Shape, device: torch.device, rounds: int, path: Path) -> dict[str, Any]:
    """The results so far, if they are of the same device and version; else none."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    note = (
        f"Random weights, {shape.size} pixels a side ({shape.large} in part large), torch {torch.__version__}, "
        f"at most {rounds} rounds; temporal decisions that look at the content are replayed from tiny-flux."
    )
    fresh = {"shape": shape.name, "device": name, "note": note}
    if path.exists():
        before = json.loads(path.read_text())
        if all(before.get(key) == value for key, value in fresh.items()):
            return before
    return fresh


@silent()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="flux-dev")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["rows", "eager"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--out", type=Path, help=f"by default {RESULTS} on a GPU, out/gpu elsewhere")
    options = parser.parse_args()
    deadline = Deadline(options.seconds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = options.out or (RESULTS if device.type == "cuda" else Path("out/gpu"))
    out.mkdir(parents=True, exist_ok=True)
    shape, path = SHAPES[options.shape], out / f"{options.shape}.json"
    results = begin(shape, device, options.rounds, path)
    pipe = build(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    everyone = contestants(shape, json.loads(TRACES.read_text()))
    bench = Bench(pipe, shape, everyone, quick(everyone), options.rounds, deadline)
    for part in (name for name in PARTS if name in options.parts):
        if deadline.passes_within(0):
            results[part] = {"skipped": f"no time was left of {options.seconds:g} s; run --parts {part}"}
        else:
            results[part] = finite(PARTS[part](bench))
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(page(results) + "\n")
        plot(results, path.with_suffix(".png"))
    print(page(results))


if __name__ == "__main__":
    main()
