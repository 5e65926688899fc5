"""The composition study: what is per-token validity worth, when spatial stages and temporal caching are stacked?

    python -m benchmarks.composition [--prompts 48] [--seeds 0 1] [--seconds 3000]
    python -m benchmarks.composition --guidance 3 --prompts 12 --seeds 0 --out benchmarks/results/composition/guided

A sweep (`ralu_cache.sweep`) on the embedded model: every method in QUESTIONS (with guidance those in GUIDED), all on
the same prompts and seeds, with PSNR, SSIM to the uncached run of the same plan and to the 50-step full run, attribute
accuracy, and FLOPs; nothing is timed (`benchmarks.ralu_speed` does that). Resumable: the same command goes on. Writes
results.jsonl, and questions.md and fronts.png (`benchmarks.composition_tables`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.composition_tables import questions_text, save_fronts
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import RALU, accelerate
from ralu_cache.generate import Request
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.quality.selection import metrics_for
from ralu_cache.sweep.command import MakeBench, header_of
from ralu_cache.sweep.contenders import Prepared, register_contender
from ralu_cache.sweep.executors import run_here
from ralu_cache.sweep.grid import Grid
from ralu_cache.sweep.methods import parse_method
from ralu_cache.sweep.records import Setting
from ralu_cache.sweep.runner import run_sweep
from ralu_cache.sweep.summary import load_summary

FREE = "first=1,last=0,compute_stage_end=false"
TRANSITIONS = ("reset", "trend")


def seer(interval: str, transition: str, *options: str, plan: str = "ralu-4x") -> str:
    """TaylorSeer that computes no stage's end unless its interval says so."""
    return ",".join([f"{plan}+taylorseer:{interval}", FREE, *options, f"transition={transition}"])


def sparse(interval: str, *options: str, transition: str = "trend") -> str:
    """Our own policy on the 4x plan, without what sets it apart from TaylorSeer but the rows."""
    settings = (interval, "ramp=false,last=1,compute_stage_end=true", *options, f"transition={transition}")
    return f"ralu-4x+adaptive:{','.join(settings)}"


def both(*intervals: str, plan: str = "ralu-4x") -> tuple[str, ...]:
    return tuple(seer(interval, transition, plan=plan) for interval in intervals for transition in TRANSITIONS)


QUESTIONS: dict[str, tuple[str, ...]] = {
    "What goes over a transition": (
        "ralu-4x",
        *(
            f"ralu-4x+{policy},transition={kind}"
            for policy in ("taylorseer:2", "seacache:0.6") for kind in ("reset", "trend", "inherit")
        ),
        *(f"ralu-4x+teacache:0.4,{options}" for options in ("order=0", "transition=reset", "transition=trend")),
        *(f"ralu-4x+toca:2,transition={kind}" for kind in ("reset", "inherit")),
    ),
    "Rewound or fresh noise": (
        "ralu-4x", "fresh-noise:ralu-4x", seer("5/2/2", "reset"), f"fresh-noise:{seer('5/2/2', 'reset')}",
    ),
    "Re-entry of sigma: kept tokens wait for the refined ones": (
        sparse("2/2/2", transition="reset"),
        *(sparse(interval, transition="kept") for interval in ("2/2/2", "1/1/2", "1/2/1")),
    ),
    "Which tokens to refresh between computed steps (30 %)": tuple(
        sparse("2/2/2", "ratio=0.3", f"score={score}") for score in ("random", "region", "change")
    ),
    "Row-sparse recompute or whole steps": (
        sparse("2/2/2"), sparse("2/2/2", "ratio=0.3", "score=region"), sparse("2/2/2", "ratio=0.6"),
        "ralu-4x+taylorseer:2,transition=reset", "ralu-4x+taylorseer:2,transition=reset,per_layer=true",
    ),
    "Where reuse is spent": (
        seer("5/1/1", "trend"), *both("1/2/1", "1/1/2", "5/2/2", "5/6/2", "5/2/3", "5/6/3"),
    ),
    "The knob of the policy that came out": (
        "ralu-4x", "ralu-4x+adaptive:2", "ralu-4x+adaptive:3", "ralu-4x+adaptive:2,ratio=0.3",
    ),
    "More steps with more reuse, and fewer": (
        "ralu-4x", *both("5/2/2"),
        *(f"steps-by-stage:{seer('8/3/3', kind, plan='8-9-12')}" for kind in TRANSITIONS),
        f"steps-by-stage:{seer('10/4/4', 'reset', plan='10-12-14')}",
        "ralu-7x", *both("2/3/2", plan="ralu-7x"),
    ),
}  # fmt: skip
GUIDED = (
    "ralu-4x", *both("5/2/2", "2/2/2"), *(f"ralu-4x+seacache:0.6,transition={kind}" for kind in TRANSITIONS),
    "ralu-4x+teacache:0.4,order=0", *(f"ralu-4x+teacache:0.4,transition={kind}" for kind in TRANSITIONS),
    "ralu-7x", *both("2/3/2", plan="ralu-7x"),
)  # fmt: skip


@contextmanager
def fresh_noise(pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
    """A method of ours with the paper's noise at transitions, which is new for every token."""
    method = parse_method(value)
    assert method.spatial == "ralu-4x"
    with accelerate(pipe, spatial=RALU(noise="paper"), temporal=method.temporal, guidance=method.guidance) as handle:
        yield Prepared(setting.steps, lambda: handle.report)


@contextmanager
def steps_by_stage(pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
    """ "8-9-12+policy": the 4x plan with other steps in its stages."""
    steps, _, temporal = value.partition("+")
    plan = RALU(steps=tuple(int(count) for count in steps.split("-")))
    with accelerate(pipe, spatial=plan, temporal=temporal) as handle:
        yield Prepared(setting.steps, lambda: handle.report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of true classifier-free guidance; 1 is none")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/composition"))
    options = parser.parse_args()
    register_contender("fresh-noise", fresh_noise)
    register_contender("steps-by-stage", steps_by_stage)
    rng = np.random.default_rng(2026)
    prompts = tuple(sample_scene(rng).prompt for _ in range(options.prompts))
    questions = QUESTIONS if options.guidance == 1 else {"With guidance": GUIDED}
    methods = tuple(dict.fromkeys(method for group in questions.values() for method in group))
    grid = Grid(methods=methods, plain_steps=(), prompts=prompts, seeds=tuple(options.seeds), batch=4)
    metrics, set_metrics, _ = metrics_for(prompts)
    request = Request(model=TINY_FLUX.name, prompt=[prompts[0]], true_cfg_scale=options.guidance)
    make = MakeBench(request, max(grid.steps), prompts)
    path = run_sweep(
        options.out, header_of(grid, request, metrics, set_metrics), grid.settings(), grid.batches(), run_here(make),
        rounds=0, seconds=options.seconds,
    )  # fmt: skip
    summary = load_summary(path)
    (options.out / "questions.md").write_text(questions_text(summary, questions, options.guidance))
    save_fronts(summary, options.out / "fronts.png")


if __name__ == "__main__":
    main()
