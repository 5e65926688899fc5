"""What of this library works with one pipeline class: a tiny random pipeline is drawn with, stock and accelerated."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.coverage.build import build, denoisers
from benchmarks.coverage.exact import off_by, rounding
from benchmarks.coverage.inputs import arguments
from ralu_cache import accelerate
from ralu_cache.adapters.registry import matching_adapter
from ralu_cache.temporal.prediction import FEW

WORKS = "yes"
STEP = ("self", "model_output", "timestep", "sample")


@dataclass
class Row:
    """A line of the table. Of the tiers it says WORKS, or why not; of `runs` too, which is that of stock.

    tier1: forecasts by the scheduler; linear: on a loop over that scheduler, of a linear denoiser, exact; tier2: reuse
    of the stack of blocks; tier3: spatial stages. finding: of the probe. written: the blocks are told by a written
    adapter. calls: of the denoiser, stock's.
    """

    pipeline: str
    denoiser: str = ""
    scheduler: str = ""
    runs: str = ""
    calls: int = 0
    tier1: str = ""
    linear: str = ""
    tier2: str = ""
    tier3: str = ""
    finding: str = ""
    written: bool = False


class Failed(Exception):
    """A law does not hold; says which."""


def survey(name: str) -> Row:
    """The line of one pipeline class."""
    row = Row(name)
    try:
        pipe = build(name)
    except Exception as error:
        row.runs = f"not built: {_told(error)}"
        return row
    models = denoisers(pipe)
    row.denoiser = ", ".join(dict.fromkeys(type(model).__name__ for model in models.values()))
    row.scheduler = type(pipe.scheduler).__name__ if getattr(pipe, "scheduler", None) is not None else ""
    stock = _first_that_runs(pipe, row)
    if stock is None:
        return row
    row.runs, (given, picture, row.calls) = WORKS, stock
    if not torch.equal(draw(pipe, given)[0], picture):
        row.runs = "stock itself draws another picture each time"
        return row
    row.tier1 = _tried(lambda: forecasts_work(pipe, given, picture, row.calls))
    row.linear = exactness(pipe)
    row.written = matching_adapter(pipe) is not None
    row.tier2 = _tried(lambda: _note_finding(row, blocks_work(pipe, given, picture)))
    row.tier3 = _tried(lambda: stages_work(pipe, given, picture)) if row.written else "no adapter"
    return row


def _first_that_runs(pipe: Any, row: Row) -> tuple[dict[str, Any], Tensor, int] | None:
    reasons = []
    for given in arguments(pipe):
        try:
            picture, calls = draw(pipe, given)
        except Exception as error:
            reasons.append(_told(error))
            continue
        return given, picture, calls
    row.runs = f"not run: {reasons[0]}"
    return None


def draw(pipe: Any, given: Mapping[str, Any]) -> tuple[Tensor, int]:
    """(what the pipeline gives first, calls of its denoisers)."""
    given = dict(given)
    if "generator" in given:
        given["generator"] = torch.Generator().manual_seed(0)
    with counted(pipe) as count, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        output = pipe(**given)
    return _tensor(output), count()


@contextmanager
def counted(pipe: Any) -> Iterator[Callable[[], int]]:
    """Counts calls of the pipeline's denoisers."""
    seen: list[None] = []
    hooks = [model.register_forward_hook(lambda *_: seen.append(None)) for model in denoisers(pipe).values()]
    try:
        yield lambda: len(seen)
    finally:
        for hook in hooks:
            hook.remove()


def _tensor(output: Any) -> Tensor:
    """The first tensor in what a pipeline gives; pictures become one."""
    while not isinstance(output, Tensor | np.ndarray):
        output = np.asarray(output) if isinstance(output, Image.Image) else output[0]
    return torch.as_tensor(output).float()


def forecasts_work(pipe: Any, given: Mapping[str, Any], stock: Tensor, calls: int) -> None:
    """Raise Failed unless forecasts leave out the calls that they should, and all computed is stock bit for bit."""
    with accelerate(pipe, temporal="forecast:1"):
        _equal("with every step computed", draw(pipe, given)[0], stock)
    with accelerate(pipe, temporal="forecast:3") as handle:
        picture, made = draw(pipe, given)
        _finite(picture)
        report = handle.report
        if report is None or not report.steps:
            raise Failed("no step went through the scheduler")
        computed = sum(step.samples > 0 for step in report.steps)
        nothing_left_out = computed == len(report.steps) and computed > FEW  # of few steps all are computed
        if made * len(report.steps) != calls * computed or nothing_left_out:
            raise Failed(f"{made} calls of the denoiser for {computed} of {len(report.steps)} steps, stock {calls}")
    _equal("disabled", draw(pipe, given)[0], stock)


def exactness(pipe: Any) -> str:
    """What is to be said of forecasts on a pipeline's scheduler, of a model that is linear in the level."""
    return _tried(lambda: _linear_is_exact(pipe.scheduler)) if hasattr(pipe, "scheduler") else "no scheduler"


def _linear_is_exact(scheduler: Any) -> None:
    takes = inspect.signature(type(scheduler).step).parameters.values()
    needed = [parameter.name for parameter in takes if parameter.default is parameter.empty]
    if len(needed) > len(STEP):
        raise Failed(f"a step of {type(scheduler).__name__} asks for more than an output: {', '.join(needed[1:])}")
    for quantity in ("clean", "velocity"):
        if (off := off_by(scheduler, quantity)) > rounding(scheduler):
            raise Failed(f"a linear {quantity} is off by {off:.1e}")


def blocks_work(pipe: Any, given: Mapping[str, Any], stock: Tensor) -> str:
    """Raise Failed unless reuse of the stack leaves out blocks, and all computed is stock bit for bit; the finding."""
    with accelerate(pipe, temporal="teacache:0"):
        _equal("with nothing reused", draw(pipe, given)[0], stock)
    with accelerate(pipe, temporal="taylorseer:2") as handle:
        picture, _ = draw(pipe, given)
        _finite(picture)
        report = handle.report
        if report is None or not any(step.reused for step in report.steps):
            raise Failed("no step reused anything")
        again, _ = draw(pipe, given)
        _equal("drawn again", again, picture)
        told = "; ".join(str(finding) for finding in handle.findings)
    _equal("disabled", draw(pipe, given)[0], stock)
    return told


def stages_work(pipe: Any, given: Mapping[str, Any], stock: Tensor) -> None:
    """Raise Failed unless spatial stages draw, and leave nothing behind."""
    with accelerate(pipe, spatial="ralu"):
        _finite(draw(pipe, given)[0])
    _equal("disabled", draw(pipe, given)[0], stock)


def _note_finding(row: Row, told: str) -> None:
    row.finding = told


def _finite(picture: Tensor) -> None:
    if not picture.isfinite().all():
        raise Failed("not finite")


def _equal(when: str, picture: Tensor, stock: Tensor) -> None:
    if picture.shape != stock.shape or not torch.equal(picture, stock):
        raise Failed(f"{when} it is not stock bit for bit")


def _tried(check: Callable[[], Any]) -> str:
    try:
        check()
    except Exception as error:
        return _told(error)
    return WORKS


def _told(error: Exception) -> str:
    """An error in a line: where it was raised, unless we say enough ourselves."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 220 else f"{text[:220]} ..."
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = "ralu_cache" in last.filename or "coverage" in last.filename
    where = "" if ours else f" ({Path(last.filename).stem}, line {last.lineno})"
    kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
    return f"{kind}{text}{where}"
