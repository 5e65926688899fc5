"""Runs of the full call and of settings, on the same prompts and seeds; what the full call drew is kept in a folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ralu_cache.api import accelerate
from ralu_cache.profiles.facts import Model
from ralu_cache.profiles.setting import Setting
from ralu_cache.report.notices import silent
from ralu_cache.report.record import stage_kind
from ralu_cache.report.report import Report
from ralu_cache.tune.clock import Clock, clocked
from ralu_cache.tune.quality import Loss

YARDSTICK = 2  # steps of the stock call that time is measured by
PER_PROMPT = ("prompt", "generator", "output_type", "num_inference_steps")
Bytes = NDArray[np.uint8]
Level = tuple[float, str, bool, float]


@dataclass(frozen=True)
class Subject:
    """What one picture is drawn of: a text, or the arguments that stand for it (its embeddings), and a seed."""

    text: str
    seed: int
    arguments: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """Of a call: pictures (B, Y, X, 3) or videos (B, F, Y, X, 3) in 8 bits, seconds of sampling, FLOPs of the denoiser
    as a share of the full call's (nan where they aren't counted).

    levels: of each step its noise level, the kind of its tokens, whether it was guided, and the share of it that was
    computed; empty of a stock call.
    """

    pictures: Bytes
    seconds: float
    flops: float
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Reference:
    """Of the full call on a chunk. pace: its seconds over those of the yardstick that was run right before it."""

    pictures: Bytes
    seconds: float
    pace: float


@dataclass(frozen=True)
class Bench:
    """steps: of the call in full. call: what every call is given beside prompts, seeds and steps. batch: at most so
    many prompts in one call. folder: where references are kept; they are made where they are missing.

    Raises ValueError for arguments that are the planner's own.
    """

    pipe: Any
    steps: int
    call: Mapping[str, Any]
    subjects: tuple[Subject, ...]
    loss: Loss
    folder: Path
    batch: int = 1

    def __post_init__(self) -> None:
        if own := [name for name in self.call if name in PER_PROMPT]:
            raise ValueError(f"call={own[0]!r} is given by the planner itself; leave it out")

    def chunks(self, few: int) -> list[range]:
        """Indices of the prompts, call by call; the first ones hold exactly `few` together."""
        count = len(self.subjects)
        first = min(few, count)
        cuts = [*range(0, first, self.batch), *range(first, count, self.batch), count]
        return [range(*cut) for cut in pairwise(cuts)]

    def texts(self, chunk: range) -> list[str]:
        return [self.subjects[index].text for index in chunk]

    def yardstick(self, chunk: range) -> float:
        """Seconds of a stock call of a few steps."""
        return self._short(chunk).seconds

    def guided(self, chunk: range) -> bool:
        """Whether the call computes every picture twice a step, for classifier-free guidance."""
        return self._short(chunk).samples >= 2 * YARDSTICK * len(chunk)

    def _short(self, chunk: range) -> Clock:
        with clocked(self.pipe) as clock:
            self.pipe(**self._arguments(chunk), num_inference_steps=YARDSTICK, output_type="latent")
        return clock

    def full(self, chunk: range) -> Run:
        """The stock call."""
        with clocked(self.pipe) as clock:
            result = self.pipe(**self._arguments(chunk), num_inference_steps=self.steps, output_type="np")
        return Run(_drawn(result), clock.seconds, 1.0)

    def run(self, setting: Setting, chunk: range) -> Run:
        """The call under a setting. Raises whatever it raises; the pipeline is stock afterwards."""
        if not setting.arguments:
            return self.full(chunk)
        with silent(), clocked(self.pipe) as clock, accelerate(self.pipe, **setting.arguments) as handle:
            result = self.pipe(**self._arguments(chunk), num_inference_steps=self.steps, output_type="np")
            report = handle.report
        baseline = math.nan if report is None else report.baseline_flops
        flops = report.flops / baseline if report and baseline else math.nan
        return Run(_drawn(result), clock.seconds, flops, _levels(report))

    def reference(self, chunk: range) -> Reference:
        """What the full call draws; run once, by whichever process needs it first."""
        path = self.folder / f"{self._key(chunk)}.npz"
        if path.exists():
            with np.load(path) as kept:
                return Reference(kept["pictures"], float(kept["seconds"]), float(kept["pace"]))
        yardstick = self.yardstick(chunk)
        run = self.full(chunk)
        self.folder.mkdir(parents=True, exist_ok=True)
        pace = run.seconds / yardstick
        unfinished = path.with_name(f".{path.stem}-{os.getpid()}.npz")
        np.savez(unfinished, pictures=run.pictures, seconds=run.seconds, pace=pace)
        unfinished.replace(path)
        return Reference(run.pictures, run.seconds, pace)

    def losses(self, pictures: Bytes, chunk: range) -> list[float]:
        """Of each picture, against the full call's."""
        both = pictures, self.reference(chunk).pictures
        shown, wanted = (each.astype(np.float32) / np.float32(255) for each in both)
        return self.loss(shown, wanted, self.texts(chunk))

    @property
    def made(self) -> dict[str, Any]:
        """What must be the same in all parts of a study."""
        return {
            "model": vars(Model.of(self.pipe)), "steps": self.steps, "call": told_call(self.call),
            "subjects": [[subject.text, subject.seed] for subject in self.subjects], "quality": self.loss.name,
            "dtype": str(self.pipe.transformer.dtype),
        }  # fmt: skip

    def _key(self, chunk: range) -> str:
        made = {name: value for name, value in self.made.items() if name not in ("quality", "subjects")}
        made |= {"subjects": [[self.subjects[index].text, self.subjects[index].seed] for index in chunk]}
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:24]

    def _arguments(self, chunk: range) -> dict[str, Any]:
        subjects = [self.subjects[index] for index in chunk]
        given = dict(self.call)
        if isinstance(negative := given.get("negative_prompt"), str):
            given["negative_prompt"] = [negative] * len(subjects)
        given["generator"] = [torch.Generator().manual_seed(subject.seed) for subject in subjects]
        if subjects[0].arguments is not None:
            return given | dict(subjects[0].arguments)
        return given | {"prompt": [subject.text for subject in subjects]}


def subjects_of(prompts: Sequence[str | Mapping[str, Any]], seed: int) -> tuple[Subject, ...]:
    """Each prompt with a seed of its own, from `seed` on. Raises ValueError without prompts, or for what is none."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts must be at least one text, in a list, got {prompts!r}")
    found = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, Mapping):
            found.append(Subject(f"embeddings {index}", seed + index, prompt))
        elif isinstance(prompt, str) and prompt.strip():
            found.append(Subject(prompt, seed + index))
        else:
            raise ValueError(f"prompt {index + 1} is {prompt!r}; a text is needed, or a mapping with its embeddings")
    return tuple(found)


def _drawn(result: Any) -> Bytes:
    shown = np.asarray(result.frames if hasattr(result, "frames") else result.images, dtype=np.float32)
    if not np.isfinite(shown).all():
        raise ValueError("the pictures hold nan or infinity")
    return np.rint(shown.clip(0, 1) * 255).astype(np.uint8)


def _levels(report: Report | None) -> tuple[Level, ...]:
    if report is None:
        return ()
    return tuple(
        (round(step.sigma, 4), stage_kind(step.tokens, report.size), step.guided is not False,
         round(step.computed / max(step.asked, 1), 2))
        for step in report.steps
    )  # fmt: skip


def told_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it; tensors, arrays and pictures by their contents."""

    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().float().numpy()
        if hasattr(value, "tobytes"):
            return hashlib.sha256(value.tobytes()).hexdigest()[:16]
        return value if isinstance(value, str | int | float | bool | None) else repr(value)

    return {name: one(value) for name, value in sorted(call.items())}
