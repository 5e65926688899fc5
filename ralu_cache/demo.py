"""The demonstration on the embedded models: full sampling, plans, caching and fewer plain steps, timed and compared."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from tqdm.auto import tqdm

from ralu_cache.api import accelerate
from ralu_cache.demo_plans import DEMO, DemoPlan
from ralu_cache.report.notices import silent
from ralu_cache.report.record import RegionMask, finite
from ralu_cache.report.report import Report
from ralu_cache.report.videos import beside, latent_frames, save_gif, side_by_side, still, to_images
from ralu_cache.sweep.comparison import Pictures, Trial, comparison_row, describe_hardware, markdown_table
from ralu_cache.sweep.methods import Method, parse_method

GIF_SCALE = 2


def run_demo(plan: DemoPlan = DEMO, out: str | PathLike[str] = "out/demo") -> dict[str, Any]:
    """Runs the plan and writes its pictures, report.json and table.md into `out`.

    grid.png: the drawings; regions.png: what was refined; timeline.png: the stages of the uncached runs;
    composition.png: stages and caching of the cached ones. A picture for which there are no such runs is left out.
    Of videos grid.png and regions.png show a frame for each latent one, videos.gif them all.

    Returns what report.json holds.
    """
    from ralu_cache.quality.likeness import psnr, ssim

    folder = Path(out)
    trials = measure(plan, plan.load())
    likeness = {"psnr": psnr, "ssim": ssim}
    uncached = {trial.method: trial for trial in reversed(trials) if trial.method.temporal is None}
    rows = {
        trial.name: comparison_row(
            trial, trials[0], likeness, uncached[trial.method.uncached] if trial.method.temporal else None
        )
        for trial in trials
    }
    summary = {
        "model": plan.name,
        "arguments": plan.arguments,
        "size": plan.size,
        "frames": plan.arguments.get("num_frames"),
        "steps": plan.steps,
        "prompts": plan.prompts,
        "seeds": plan.seeds,
        "repeats": plan.repeats,
        "hardware": describe_hardware(plan.device),
        "versions": {name: version(name) for name in ("ralu-cache", "torch", "diffusers", "transformers", "numpy")},
        "methods": rows,
    }
    _draw(plan, trials, rows, folder)
    (folder / "report.json").write_text(json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")
    (folder / "table.md").write_text(markdown_table(summary))
    return summary


def _draw(plan: DemoPlan, trials: list[Trial], rows: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """The figures, of the first seed."""
    from ralu_cache.report.figures import save_grid
    from ralu_cache.report.timeline import save_runs

    seed = plan.seeds[0]
    reports = {trial.name: trial.reports[seed] for trial in trials if trial.reports}
    drawn = {trial.name: trial.pictures[seed] for trial in trials}
    frames = latent_frames(next(iter(reports.values())).size, drawn[trials[0].name])
    pictures = {name: [still(picture, frames) for picture in batch] for name, batch in drawn.items()}
    captions = {name: _caption(name, row) for name, row in rows.items()}
    save_grid({captions[name]: pictures[name] for name in rows}, plan.prompts, folder / "grid.png")
    if plan.model.frames_per_second is not None:
        columns = {captions[name]: [to_images(video, GIF_SCALE) for video in drawn[name]] for name in rows}
        save_gif(side_by_side(columns, plan.prompts), folder / "videos.gif", plan.model.frames_per_second)
    masks = {name: _masks(report, frames) for name, report in reports.items() if report.regions}
    if masks:
        save_grid({name: pictures[name] for name in masks}, plan.prompts, folder / "regions.png", masks)
    for file, caches in (("timeline.png", False), ("composition.png", True)):
        chosen = {name: report for name, report in reports.items() if report.caches is caches}
        if chosen:
            save_runs(
                {_label(name, report.flop_ratio, 44, 2): report for name, report in chosen.items()}, folder / file
            )


def measure(plan: DemoPlan, pipe: Any) -> list[Trial]:
    """Full sampling, the plan's methods and plain runs of the same cost, one after the other in every round.

    An untimed run of each method comes first: it warms up every shape, and tells the cost in FLOPs.
    """
    pipe.set_progress_bar_config(disable=True)
    pace = 0.1 if sys.stderr.isatty() else 10.0  # seconds between updates: a log file needs fewer lines
    with tqdm(desc="warm-up", unit="step", mininterval=pace) as bar, silent():
        fast = _accelerated(plan.methods)
        reports = [_report(_sample(plan, pipe, trial, plan.seeds[0], bar)[1]) for trial in fast]
        step = _step_flops(reports)
        for trial, made in zip(fast, reports, strict=True):
            trial.steps, trial.flops = len(made.steps), _flops(made, step)
        equal = sorted({max(1, round(trial.flops / step)) for trial in fast} - {plan.steps}, reverse=True)
        plain = [Trial(f"{steps} plain steps", steps, steps * step) for steps in equal]
        trials = [Trial("full", plan.steps, plan.steps * step), *fast, *plain]

        rounds = [(repeat, seed) for repeat in range(plan.repeats) for seed in plan.seeds]
        bar.reset(total=len(rounds) * sum(_steps_asked(plan, trial) for trial in trials))
        for repeat, seed in rounds:
            for trial in trials:
                bar.set_description(f"round {repeat + 1}/{plan.repeats}, {trial.name}")
                start = perf_counter()
                pictures, told = _sample(plan, pipe, trial, seed, bar)
                trial.seconds.append(perf_counter() - start)
                trial.pictures.setdefault(seed, pictures)
                if told is not None:
                    trial.reports.setdefault(seed, told)
    for trial in fast:  # what is reused differs from seed to seed
        trial.flops = fmean(_flops(report, step) for report in trial.reports.values())
    return trials


def _report(report: Report | None) -> Report:
    assert report is not None
    return report


def _step_flops(reports: Sequence[Report]) -> float:
    """Of one full-resolution step of batch and branches. Raises ValueError where no run's cost is known."""
    for report in reports:
        if report.counted:
            return report.baseline_flops / report.baseline_steps
    raise ValueError("forecasts by the scheduler alone don't know what a step costs; name one method with a plan too")


def _flops(report: Report, step: float) -> float:
    """Of a run; where the model's cost is not known, by the steps at which it was called."""
    return report.flops if report.counted else report.called_steps * step


def _accelerated(methods: Sequence[str]) -> list[Trial]:
    """A trial for each method, and for the uncached plan of a cached one before it, unless that is plain sampling."""
    names = {parse_method(name): name for name in methods}
    ordered: dict[Method, str] = {}
    for method, name in names.items():
        if method.temporal and method.uncached not in (Method(), *names):
            ordered.setdefault(method.uncached, str(method.uncached))
        ordered[method] = name
    return [Trial(name, 0, 0.0, method) for method, name in ordered.items()]


def _steps_asked(plan: DemoPlan, trial: Trial) -> int:
    """`num_inference_steps` of the trial's calls: so often its callback is told, whatever steps a plan makes of it."""
    return trial.steps if trial.method == Method() else plan.steps


def _sample(plan: DemoPlan, pipe: Any, trial: Trial, seed: int, bar: tqdm) -> tuple[Pictures, Report | None]:
    """One call of the pipeline on all prompts; every picture has its own generator."""

    def count(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        bar.update()
        return tensors

    batch = len(plan.prompts)
    parts = trial.method.parts
    with accelerate(pipe, **parts) if parts else nullcontext() as handle:
        call = {
            "negative_prompt": [""] * batch,
            "num_inference_steps": _steps_asked(plan, trial),
            "generator": [torch.Generator().manual_seed(1000 * seed + index) for index in range(batch)],
            "callback_on_step_end": count,
            "output_type": "np",
        }
        sides = {"height": plan.size, "width": plan.size}
        drawn = pipe(list(plan.prompts), **{**plan.arguments, **sides, **call})
    return getattr(drawn, plan.model.output), None if handle is None else handle.report


def _masks(report: Report, frames: int) -> list[list[RegionMask]]:
    """The masks of every sample, in the order of the mixed stages; a video's frames beside each other."""
    return [[beside(masks[sample], frames) for masks in report.regions] for sample in range(report.batch)]


def _caption(name: str, row: Mapping[str, Any]) -> str:
    """A method's label; no times, so that the picture is the same wherever it is drawn."""
    if row["psnr"] is None:
        return f"{name}\n{row['steps']} steps"
    return f"{_label(name, row['flop_ratio'], 24, 1)}\n{row['psnr']:.1f} dB"


def _label(name: str, flop_ratio: float, width: int, digits: int) -> str:
    """A method and what it saves, in lines of so many letters."""
    lines = textwrap.wrap(name.replace("+", " +").replace(",", ", "), width)
    return "\n".join([*lines, f"{flop_ratio:.{digits}f}x fewer FLOPs"])
