"""How long a row-sparse step takes, as a share of a full one: the embedded model at 256 pixels (1024 image tokens).

    python -m benchmarks.row_sparse_step [--rounds 15] [--out benchmarks/results/composition]

One denoiser step on the fine layout, all caches filled, batch 1: computed in full, with some share of the tokens, and
reused whole, in turns; quartiles of the ratio to the full step of the same round. Writes step.json, step.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ralu_cache import Adaptive, TaylorSeer, accelerate
from ralu_cache.generate import Request, load
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.report.table import Table
from ralu_cache.sweep.comparison import describe_hardware
from ralu_cache.temporal import Policy

SHARES = (0.1, 0.2, 0.3, 0.5)
STEPS = 8  # of a stage; every second one is what is measured
SIZE = 256
T = TypeVar("T")


def policies(shares: Sequence[float] = SHARES) -> dict[str, Policy]:
    """The measured step is every second of a stage; `max_age=0` computes it in full.

    With a share of 1 it is computed in full as well, and keys and values are kept.
    """
    partial = {f"{share:.0%} of the tokens": Adaptive(2, ratio=share, score="staleness") for share in shares}
    reused = TaylorSeer(2, first=1, last=0, compute_stage_end=False)
    return {"full": TaylorSeer(2, max_age=0), **partial, "reused": reused}


def measured(steps: Sequence[T]) -> Sequence[T]:
    """Of a stage's steps those that are measured, the first pair left out as warm-up."""
    return steps[3::2]


def step_seconds(pipe: object, policy: Policy) -> float:
    """Median seconds of a run's measured steps."""
    with accelerate(pipe, temporal=policy) as handle:
        pipe(  # type: ignore[operator]
            "a red circle on a blue background", num_inference_steps=STEPS, height=SIZE, width=SIZE,
            generator=torch.Generator().manual_seed(0), output_type="latent", max_sequence_length=16,
        )  # fmt: skip
        assert handle.report is not None
        return statistics.median(step.seconds for step in measured(handle.report.steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/composition"))
    options = parser.parse_args()
    request = Request(model=TINY_FLUX.name, prompt=["a red circle on a blue background"])
    pipe = load(request)
    pipe.set_progress_bar_config(disable=True)
    times: dict[str, list[float]] = {name: [] for name in policies()}
    for turn in range(options.rounds + 1):
        for name, policy in policies().items():
            seconds = step_seconds(pipe, policy)
            if turn:
                times[name].append(seconds)
    ratios = {
        name: statistics.quantiles([mine / full for mine, full in zip(slot, times["full"], strict=True)], n=4)
        for name, slot in times.items()
    }
    hardware = describe_hardware("cpu")
    cells = [(name, f"{mid:.0%} ({low:.0%} to {high:.0%})") for name, (low, mid, high) in ratios.items()]
    lines = [
        "# A row-sparse step at 1024 image tokens", "",
        f"{options.rounds} interleaved rounds, batch 1, {hardware['name']}, {hardware['threads']} threads. Made by "
        "`python -m benchmarks.row_sparse_step`.", "",
        Table(("step", "time, share of a full step (quartiles)"), cells).markdown(),
    ]  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    data = {"rounds": options.rounds, "size": SIZE, "hardware": hardware, "seconds": times}
    (options.out / "step.json").write_text(json.dumps(data, indent=1) + "\n")
    (options.out / "step.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
