"""`ralu-cache tune`: read the prompts, load the model, tune, and say what was found and how it is used."""

from __future__ import annotations

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ralu_cache.generate import Request, call_arguments, load
from ralu_cache.report.table import Table
from ralu_cache.tune.run import Options, Tuned, tune_with

PER_PROMPT = ("prompt", "generator", "num_images_per_prompt", "num_videos_per_prompt")


def run(args: argparse.Namespace) -> None:
    """Prints the front, where profile and page are, and the lines that use them."""
    prompts = read_prompts(args.prompts)
    names = vars(args).keys() & {field.name for field in fields(Request)} - {"out"}
    request = Request(prompt=prompts[:1], **{name: getattr(args, name) for name in names})
    pipe = _loaded(request)
    call = {name: value for name, value in call_arguments(request, pipe).items() if name not in PER_PROMPT}
    if isinstance(call.get("negative_prompt"), list):  # repeated for each prompt later
        call["negative_prompt"] = call["negative_prompt"][0]
    names = vars(args).keys() & {field.name for field in fields(Options)}
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    options |= {"call": call, "name": args.model, "scales": None if args.scales is None else tuple(args.scales)}
    print(describe(tune_with(pipe, prompts, Options(**options), partial(_loaded, request)), args.model))


def _loaded(request: Request) -> Any:
    pipe = load(request)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_prompts(path: Path) -> list[str]:
    """One a line; empty lines don't count. Raises ValueError, with the line, for what is no text, and without any."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not a text in UTF-8 ({error.reason})") from error
        if "\0" in text:
            raise ValueError(f"{path}, line {number}: not a text, it holds a zero byte")
        found += [text] if text else []
    if not found:
        raise ValueError(f"{path} holds no prompts; one a line is expected")
    return found


def describe(tuned: Tuned, model: str) -> str:
    """The front, from slow to fast, and how it is used."""
    front = tuned.front
    timed = front.cost == "seconds"
    rows = [
        [
            *([f"{point.speedup:.3g}x"] if timed else []), f"{point.flop_ratio:.3g}x", f"{point.loss:.3g}",
            point.setting.told,
        ]
        for point in front.points
    ]  # fmt: skip
    rows[front.chosen][0] += " *"
    unit = f", {front.measure.unit}" if front.measure.unit else ""
    titles = (*(["faster"] if timed else []), "fewer FLOPs", f"loss ({front.measure.label}{unit})", "setting")
    table = Table(titles, rows, left=(len(titles) - 1,))
    best = front.points[front.chosen]
    return "\n".join([
        table.plain(),
        f"profile: {tuned.path}\npage: {tuned.page}",
        f"use it: accelerate(pipe, speedup={best.asked:g}), accelerate(pipe, max_loss={best.high:.4g}), or for *",
        f"        ralu-cache generate --model {model} --profile {tuned.path} --prompt ... with {front.call.flags}",
    ])  # fmt: skip
