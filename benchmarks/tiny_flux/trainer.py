"""The training loop of a tiny transformer: kinds of batches in phases, checkpoints, a log."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.tiny_flux.batches import KINDS
from benchmarks.tiny_flux.budget import Budget, learning_rate_factor
from benchmarks.tiny_flux.flat_parameters import FlatParameters
from benchmarks.tiny_flux.optimiser import Optimiser, OptimiserState
from benchmarks.tiny_flux.workers import Worker

Chances = tuple[float, float, float]
FROM_SCRATCH: tuple[tuple[float, Chances], ...] = (
    (0.33, (1.0, 0.0, 0.0)),
    (0.72, (0.40, 0.48, 0.12)),
    (1.0, (0.22, 0.63, 0.15)),
)


class Task(Protocol):
    """What is trained: parameters, and their loss on a batch of its own drawing."""

    parameters: FlatParameters

    def begin(self, seed: int, step: int, rank: int) -> None:
        """Seed the batches of one worker, at the first step or the one at which a killed run goes on."""

    def choose_kind(self, chances: Chances) -> str:
        """The kind of the next batch, the same on all workers."""

    def loss(self, kind: str, count: int, fraction: float) -> Tensor:
        """The scalar loss of a new batch, when this share of the budget is used up."""


@dataclass(frozen=True)
class TrainingConfig:
    """Budget, batches and rates.

    `phases` are (until this share of the budget, chances of half / full / mixed steps); `rate` scales the learning
    rates; `hold` is the share of the budget after which they decay.
    """

    minutes: float = 83.0
    steps: int | None = None
    batch: dict[str, int] = field(default_factory=lambda: {"half": 48, "full": 12, "mixed": 20})
    phases: tuple[tuple[float, Chances], ...] = FROM_SCRATCH
    rate: float = 1.0
    warmup: int = 100
    hold: float = 0.55
    seed: int = 7
    log_every: int = 20
    save_every: float = 120.0

    def __post_init__(self) -> None:
        if set(self.batch) != set(KINDS) or min(self.batch.values()) < 1:
            raise ValueError(f"batch is {self.batch}; a positive size for each of {KINDS} is needed")
        if not 0 < self.rate <= 10:
            raise ValueError(f"rate is {self.rate}; a factor above 0 and up to 10 is needed")

    def chances(self, fraction: float) -> Chances:
        """Chances of half / full / mixed steps at this share of the budget."""
        return next(chances for until, chances in self.phases if fraction < until)


class Trainer:
    """One worker's training run; all workers hold the same weights and optimiser state."""

    def __init__(self, worker: Worker, config: TrainingConfig, task: Task, folder: Path) -> None:
        self.worker, self.config, self.task, self.folder = worker, config, task, folder
        self.optimiser = Optimiser(task.parameters, worker)
        self.budget = Budget(config.minutes, config.steps)
        self.seen = dict.fromkeys(KINDS, 0)
        self.log: list[dict[str, float]] = []
        if self.checkpoint.exists():
            self.restore()
        task.begin(config.seed, self.budget.step, worker.rank)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "transformer_checkpoint.pt"

    def run(self) -> None:
        """Train until the budget is used up."""
        losses: dict[str, list[float]] = {kind: [] for kind in KINDS}
        saved = self.budget.seconds
        while (fraction := self.worker.agree(self.budget.fraction)) < 1:
            kind, loss = self.step(fraction)
            losses[kind].append(loss)
            self.budget.tick()
            if self.budget.step % self.config.log_every == 0:
                self.report(losses, fraction)
                losses = {kind: [] for kind in KINDS}
            if self.worker.leads and self.budget.seconds - saved > self.config.save_every:
                saved = self.budget.seconds
                self.save()
        if self.worker.leads:
            self.save()

    def step(self, fraction: float) -> tuple[str, float]:
        """One update; the kind of its batch and this worker's loss."""
        config = self.config
        kind = self.task.choose_kind(config.chances(fraction))
        loss = self.task.loss(kind, config.batch[kind], fraction)
        loss.backward()
        factor = learning_rate_factor(self.budget.step, fraction, config.warmup, config.hold)
        self.optimiser.step(config.rate * factor)
        self.seen[kind] += config.batch[kind] * self.worker.world
        return kind, loss.item()

    def report(self, losses: dict[str, list[float]], fraction: float) -> None:
        """Add the mean losses since the last report to the log, and print them."""
        means = {kind: round(float(np.mean(values)), 4) for kind, values in losses.items() if values}
        self.log.append({"step": self.budget.step, "minutes": round(self.budget.seconds / 60, 2), **means})
        if self.worker.leads:
            text = ", ".join(f"{kind} {value:.4f}" for kind, value in means.items())
            print(f"transformer: step {self.budget.step} ({fraction:.0%}), {text}, {self.budget.left()}", flush=True)

    def save(self) -> None:
        """Write the checkpoint; a kill while writing leaves the previous one."""
        state = {
            "weights": self.task.parameters.master,
            "optimiser": vars(self.optimiser.state),
            "step": self.budget.step,
            "seconds": self.budget.seconds,
            "seen": self.seen,
            "log": self.log,
        }
        unfinished = self.checkpoint.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)

    def restore(self) -> None:
        """Continue from the checkpoint."""
        state = torch.load(self.checkpoint, map_location=self.worker.device, weights_only=True)
        self.task.parameters.master.copy_(state["weights"])
        self.task.parameters.sync()
        self.optimiser.state = OptimiserState(**state["optimiser"])
        self.budget.step, self.budget.seconds = state["step"], state["seconds"]
        self.seen, self.log = state["seen"], state["log"]

    def write_log(self) -> None:
        """Write transformer_log.json: the configuration, the samples seen, the losses."""
        record = {"config": asdict(self.config), "seen": self.seen, "log": self.log}
        (self.folder / "transformer_log.json").write_text(json.dumps(record, default=str))

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own parameter names, on the CPU."""
        state = self.task.parameters.state_dict(self.optimiser.state.average)
        return {name: value.cpu() for name, value in state.items()}
