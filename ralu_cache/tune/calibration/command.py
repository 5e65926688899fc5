"""`ralu-cache calibrate`: watch a checkpoint draw a few prompts, fit, save the profile, say what it is worth."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ralu_cache.demo_plans import demo_prompts
from ralu_cache.generate import Request, call_arguments, load
from ralu_cache.sweep.grid import grid_from
from ralu_cache.temporal.coefficients import model_folder, profile_name
from ralu_cache.temporal.profile import Profile
from ralu_cache.tune.calibration.fit import fit_profile, stage_pairs
from ralu_cache.tune.calibration.plot import save_fits
from ralu_cache.tune.calibration.watch import watch_runs


def run(args: argparse.Namespace) -> None:
    """Writes the profile, and the plot if one is wanted; prints a line for each stage."""
    fields = vars(args).keys() & Request.__dataclass_fields__.keys() - {"plot", "out"}
    base = Request(prompt=["-"], **{name: getattr(args, name) for name in fields})
    grid = grid_from({"prompts": args.prompts or demo_prompts(args.model), "seeds": args.seeds, "batch": 1})
    requests = [replace(base, prompt=list(batch.prompts), seed=batch.seeds[0]) for batch in grid.batches()]
    pipe = load(base)
    folder = model_folder(pipe.transformer) if args.beside else None  # refused before the runs, not after
    calls: list[dict[str, Any]] = [call_arguments(request, pipe) for request in requests]
    traces, report = watch_runs(pipe, calls, base.method.spatial)
    pairs = stage_pairs(traces)
    profile = fit_profile(pairs, report, calls[0], args.degree, args.model)
    out = args.out if folder is None else folder / profile_name(profile.plan)
    profile.save(out)
    if args.plot:
        save_fits(profile, pairs, args.plot)
    print(describe(profile))
    if folder is None:
        print(f"use it: temporal=TeaCache(threshold=..., coefficients={str(out)!r})")
    else:
        print(f"{out} is used by temporal='teacache' wherever this model is loaded from there")


def describe(profile: Profile) -> str:
    """A line for each stage: pairs, range, error, and the share of the variance that the fit explains."""
    lines = [f"{profile.model}, spatial {profile.plan}, {profile.steps} steps"]
    for index, stage in enumerate(profile.stages):
        explained = "no variance" if stage.r2 is None else f"R² {stage.r2:.3f}"
        low, high = stage.range
        lines.append(
            f"  stage {index + 1}: {stage.pairs} pairs, signal change {low:.3g} to {high:.3g}, degree "
            f"{len(stage.coefficients) - 1}, rms error {stage.rms:.3g}, {explained}"
        )
    return "\n".join(lines)
