"""Accelerated runs of the embedded models, each drawn once and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.regime.pictures import BATCH, PlainRun, fingerprint, load, scene_prompts, to_bytes
from ralu_cache import accelerate
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.base import Pictures

FULL = 50


@dataclass(frozen=True)
class Setting:
    """What is compared: a short name, the plan's words, and what `accelerate` is given.

    steps: `num_inference_steps` of the call. part: what of it varies, by name, for the tables.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = FULL
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A model at a guidance on prompts of a split; picture i has prompt i and seed i.

    folder: of what was drawn already.
    """

    model: str
    guidance: float
    split: str
    count: int
    folder: Path

    @property
    def prompts(self) -> tuple[str, ...]:
        return scene_prompts(self.split, self.count)

    @property
    def name(self) -> str:
        return f"{self.model}-g{self.guidance:g}-{self.split}"

    def full(self, steps: int = FULL) -> PlainRun:
        """The plain run of so many steps."""
        return PlainRun(self.model, self.guidance, steps, self.split)

    def draw(self, setting: Setting) -> tuple[Pictures, float]:
        """(pictures, how many times fewer FLOPs than 50 plain steps), drawn now or before."""
        weights = fingerprint(EMBEDDED[self.model].folder)
        place = self.folder / f"{self.name}-{weights}" / setting.name.replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        shown, costs = [], []
        for start in range(0, self.count, BATCH):
            pictures, cost = place / f"{start:04d}.npy", place / f"{start:04d}.json"
            if not cost.exists():
                drawn, ratio = self._batch(setting, start)
                np.save(pictures, to_bytes(drawn))
                cost.write_text(json.dumps(ratio))
            shown.append(np.load(pictures))
            costs.append(json.loads(cost.read_text()))
        found: Pictures = (np.concatenate(shown)[: self.count] / 255).astype(np.float32)
        return found, float(np.mean(costs))

    def _batch(self, setting: Setting, start: int) -> tuple[Pictures, float]:
        embedded = EMBEDDED[self.model]
        prompts = list(scene_prompts(self.split, start + BATCH)[start:])
        scale = next(name for name in embedded.arguments if name.endswith("_scale"))
        given = {**embedded.arguments, scale: self.guidance, "negative_prompt": [""] * BATCH}
        generators = [torch.Generator().manual_seed(start + index) for index in range(BATCH)]
        pipe = load(self.model, None)
        with accelerate(pipe, **setting.options) as handle:
            drawn: Pictures = pipe(
                prompts, height=embedded.size, width=embedded.size, num_inference_steps=setting.steps,
                generator=generators, output_type="np", **given,
            ).images  # fmt: skip
        report = handle.report
        if report is None:  # all is stock
            return drawn, FULL / setting.steps
        return drawn, report.flop_ratio * FULL / setting.steps
