"""The composition study: what is per-token validity worth, when spatial stages and temporal caching are stacked?

    python -m benchmarks.composition [--prompts 48] [--seeds 0 1] [--seconds 3000]

A sweep (`ralu_cache.sweep`) on the embedded model: every method in QUESTIONS, all on the same prompts and seeds, with
PSNR, SSIM to the uncached run of the same plan and to the 50-step full run, attribute accuracy, and FLOPs; nothing is
timed. Resumable: the same command goes on. Writes results.jsonl, and questions.md: a table for each question, FLOPs
relative to the uncached plan.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import RALU, accelerate
from ralu_cache.embedded import TINY_FLUX
from ralu_cache.generate import Request
from ralu_cache.methods import parse_method
from ralu_cache.quality.selection import metrics_for
from ralu_cache.sweep.command import MakeBench, header_of
from ralu_cache.sweep.contenders import Prepared, register_contender
from ralu_cache.sweep.executors import run_here
from ralu_cache.sweep.grid import Grid
from ralu_cache.sweep.outputs import load_summary
from ralu_cache.sweep.records import Setting
from ralu_cache.sweep.runner import run_sweep
from ralu_cache.sweep.summary import Row, Summary

FREE = "compute_stage_end=false"
KEY = "score=key"
RESET = f"taylorseer:5/2/2,first=1,{FREE}"


def sparse(interval: str, *options: str) -> str:
    """Our own policy on the 4x plan, without what sets it apart from TaylorSeer but the rows."""
    return ",".join([f"ralu-4x+adaptive:{interval},ramp=false,last=1,compute_stage_end=true", *options])


QUESTIONS: dict[str, tuple[str, ...]] = {
    "Reset or inherit at a transition": (
        "ralu-4x", "ralu-4x+taylorseer:2", "ralu-4x+taylorseer:2,transition=inherit", "ralu-4x+seacache:0.5",
        "ralu-4x+seacache:0.5,transition=inherit", "ralu-4x+toca:2", "ralu-4x+toca:2,transition=inherit",
    ),
    "Rewound or fresh noise": (
        "ralu-4x", "fresh-noise:ralu-4x", f"ralu-4x+{RESET}", f"fresh-noise:ralu-4x+{RESET}",
    ),
    "Re-entry of sigma: kept tokens wait for the refined ones": (
        sparse("2/2/2"), sparse("2/2/2", "transition=kept"), sparse("1/1/2", "transition=kept"),
        sparse("1/2/1", "transition=kept"),
    ),
    "Which tokens to refresh between computed steps (30 %)": tuple(
        sparse("2/2/2", "ratio=0.3", f"score={score}")
        for score in ("random", "staleness", "region", "change", "key", "value")
    ),
    "Row-sparse recompute or whole steps": (
        sparse("2/2/2"), *(sparse("2/2/2", f"ratio={ratio}", KEY) for ratio in (0.15, 0.3, 0.6)),
        sparse("2/2/2", "order=0"), sparse("2/2/2", "ratio=0.3", KEY, "order=0"), sparse("4/4/4", "ratio=0.3", KEY),
        sparse("5/3/2", "ratio=0/0/0.15", KEY),
        "ralu-4x+toca:2", "ralu-4x+taylorseer:2", "ralu-4x+taylorseer:2,per_layer=true",
    ),
    "Where reuse is spent": tuple(
        f"ralu-4x+taylorseer:{setting},first=1,{FREE}"
        for setting in (
            "5/1/1", "1/2/1", "1/1/2", "5/2/1", "5/2/2", "5/2/2,ramp=false", "5/3/2", "5/2/3", "5/3/4", "5/6/7",
        )
    ),
    "The knob of the policy that came out": (
        "ralu-4x", "ralu-4x+adaptive:1", "ralu-4x+adaptive:2", "ralu-4x+adaptive:3", "ralu-4x+adaptive:4",
        "ralu-4x+adaptive:2,ratio=0.3",
    ),
    "More steps with more reuse": (
        "ralu-4x", f"ralu-4x+{RESET}", f"steps-by-stage:8-9-12+taylorseer:8/3/3,first=1,{FREE}",
        f"steps-by-stage:10-12-14+taylorseer:10/4/4,first=1,{FREE}", "ralu-7x", f"ralu-7x+{RESET}",
    ),
}  # fmt: skip


@contextmanager
def fresh_noise(pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
    """A method of ours with the paper's noise at transitions, which is new for every token."""
    method = parse_method(value)
    assert method.spatial == "ralu-4x"
    with accelerate(pipe, spatial=RALU(noise="paper"), temporal=method.temporal) as handle:
        yield Prepared(setting.steps, lambda: handle.report)


@contextmanager
def steps_by_stage(pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
    """ "8-9-12+policy": the 4x plan with other steps in its stages."""
    steps, _, temporal = value.partition("+")
    plan = RALU(steps=tuple(int(count) for count in steps.split("-")))
    with accelerate(pipe, spatial=plan, temporal=temporal) as handle:
        yield Prepared(setting.steps, lambda: handle.report)


def questions_text(summary: Summary) -> str:
    """A table for each question: speed, cost and likeness of its methods."""
    rows = {row.setting.method: row for row in summary.rows}
    uncached = rows["ralu-4x"]
    first = f"{len(summary.pairs)} pictures each, unguided, 128x128 pixels, {summary.header.hardware}."
    lines = [
        "# Composition study: the tables", "",
        f"{first} Made by `python -m benchmarks.composition`; ± is the standard error over the pictures.", "",
        'FLOPs: so many times fewer than the uncached "4x" plan.',
    ]  # fmt: skip
    titles = "| method | FLOPs | PSNR to uncached plan | SSIM to it | PSNR to full run | attributes |"
    for question, methods in QUESTIONS.items():
        lines += ["", f"## {question}", "", titles, "|---|---:|---:|---:|---:|---:|"]
        lines += [_line(rows[method], uncached) for method in methods if method in rows]
    return "\n".join(lines) + "\n"


def _line(row: Row, uncached: Row) -> str:
    def figure(name: str, unit: str = "", digits: int = 1) -> str:
        quality = row.quality.get(name)
        return "-" if quality is None else f"{quality.mean:.{digits}f} ± {quality.error:.{digits}f}{unit}"

    cells = (
        f"`{row.setting.method}`", f"{row.flop_ratio / uncached.flop_ratio:.2f}x", figure("psnr_uncached", " dB"),
        figure("ssim_uncached", digits=3), figure("psnr", " dB"), figure("attributes", " %"),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/composition"))
    options = parser.parse_args()
    register_contender("fresh-noise", fresh_noise)
    register_contender("steps-by-stage", steps_by_stage)
    rng = np.random.default_rng(2026)
    prompts = tuple(sample_scene(rng).prompt for _ in range(options.prompts))
    methods = tuple(dict.fromkeys(method for group in QUESTIONS.values() for method in group))
    grid = Grid(methods=methods, plain_steps=(), prompts=prompts, seeds=tuple(options.seeds), batch=4)
    metrics, set_metrics, _ = metrics_for(prompts)
    request = Request(model=TINY_FLUX.name, prompt=[prompts[0]], true_cfg_scale=1.0)
    make = MakeBench(request, max(grid.steps), prompts)
    path = run_sweep(
        options.out, header_of(grid, request, metrics, set_metrics), grid.settings(), grid.batches(), run_here(make),
        rounds=0, seconds=options.seconds,
    )  # fmt: skip
    (options.out / "questions.md").write_text(questions_text(load_summary(path)))


if __name__ == "__main__":
    main()
