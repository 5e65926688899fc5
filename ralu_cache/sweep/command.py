"""`ralu-cache sweep`: its options, and the sweep that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ralu_cache.demo_plans import DEMO
from ralu_cache.generate import Request, call_arguments, device_of, load, makes_videos
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.base import Metric, MetricInfo, SetMetric
from ralu_cache.quality.selection import metrics_for
from ralu_cache.sweep.comparison import describe_hardware
from ralu_cache.sweep.engine import UNCACHED, Bench
from ralu_cache.sweep.executors import Executor, run_here, run_on_ray
from ralu_cache.sweep.grid import Grid, grid_from
from ralu_cache.sweep.outputs import write_outputs
from ralu_cache.sweep.pictures import PictureFolder
from ralu_cache.sweep.records import Header
from ralu_cache.sweep.runner import run_sweep

LIBRARIES = ("torch", "diffusers", "ralu-cache")


@dataclass(frozen=True)
class MakeBench:
    """Makes a `Bench` in whatever process it is called in."""

    request: Request
    full_steps: int
    prompts: tuple[str, ...]

    def __call__(self) -> Bench:
        pipe = load(self.request)
        if makes_videos(pipe):
            raise ValueError(_NO_VIDEOS.format(model=self.request.model, pipeline=type(pipe).__name__))
        pipe.set_progress_bar_config(disable=True)
        metrics, set_metrics, _ = metrics_for(self.prompts)
        call = {name: value for name, value in call_arguments(self.request, pipe).items() if name not in _PER_CALL}
        if "negative_prompt" in call:  # a list, as long as the request's prompts; `Bench` repeats it for each batch
            call["negative_prompt"] = call["negative_prompt"][0]
        return Bench(pipe, self.full_steps, call, metrics, set_metrics)


_NO_VIDEOS = (
    "--model {model} is a {pipeline}, which makes videos; a sweep judges pictures: use a text-to-image model, such as "
    "tiny-flux or tiny-sd3, or compare methods on videos with ralu-cache demo --models tiny-wan --methods ..."
)
_PER_CALL = ("prompt", "generator", "height", "width", "num_inference_steps", "num_images_per_prompt")


def sweep(args: argparse.Namespace) -> Path:
    """Runs the sweep that the options describe, writes its tables, plots and page, and returns its results file."""
    options = {field.name: getattr(args, field.name) for field in fields(Grid)}
    given = {name: value for name, value in options.items() if value is not None}
    if args.prompts is None and args.grid is None:
        given["prompts"] = DEMO.prompts
    grid = grid_from(given, args.grid)
    if args.model in EMBEDDED and EMBEDDED[args.model].output == "frames":  # before anything is written
        raise ValueError(_NO_VIDEOS.format(model=args.model, pipeline=EMBEDDED[args.model].pipeline))
    metrics, set_metrics, notices = metrics_for(grid.prompts)
    for notice in notices:
        print(f"note: {notice}")
    request = Request(
        model=args.model, prompt=[grid.prompts[0]], negative_prompt=args.negative_prompt, device=args.device,
        true_cfg_scale=args.true_cfg_scale, guidance_scale=args.guidance_scale, dtype=args.dtype,
        max_sequence_length=args.max_sequence_length,
    )  # fmt: skip
    make = MakeBench(request, max(grid.steps), grid.prompts)
    executor: Executor = run_on_ray(make, args.workers) if args.executor == "ray" else run_here(make)
    path = run_sweep(
        args.out, header_of(grid, request, metrics, set_metrics), grid.settings(), grid.batches(), executor,
        rounds=args.rounds, seconds=args.seconds, retry=args.retry_errors,
        keep=PictureFolder(args.out, grid.batches()),
    )  # fmt: skip
    write_outputs(path, args.out)
    return path


def header_of(grid: Grid, request: Request, metrics: Sequence[Metric], set_metrics: Sequence[SetMetric]) -> Header:
    infos = {metric.name: metric.info for metric in metrics} | {metric.name: metric.info for metric in set_metrics}
    for metric in (metric for metric in metrics if metric.reference):
        label = f"{metric.info.label} to the uncached plan"
        infos[metric.name + UNCACHED] = MetricInfo(label, metric.info.unit, metric.info.higher)
    arguments: dict[str, Any] = {
        "negative_prompt": request.negative_prompt,
        "true_cfg_scale": request.true_cfg_scale,
        "guidance_scale": request.guidance_scale,
        "max_sequence_length": request.max_sequence_length,
    }
    if request.model in EMBEDDED:
        embedded = EMBEDDED[request.model].arguments
        arguments |= {name: value for name, value in embedded.items() if arguments.get(name) is None}
    hardware = describe_hardware(device_of(request))
    return Header(
        model=request.model,
        full_steps=max(grid.steps),
        call={name: value for name, value in arguments.items() if value is not None},
        metrics=infos,
        hardware=f"{hardware['name']}, {hardware['threads']} threads",
        versions={name: version(name) for name in LIBRARIES},
    )
