"""Rectified-flow training of the tiny FluxTransformer2DModel on encoded scenes at several resolutions."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from benchmarks.tiny_flux.batches import KINDS, Batches
from benchmarks.tiny_flux.budget import Budget, learning_rate_factor
from benchmarks.tiny_flux.fast_forward import FastForward
from benchmarks.tiny_flux.latents import LatentData
from benchmarks.tiny_flux.optimiser import Optimiser, OptimiserState
from benchmarks.tiny_flux.text import CLIP_WIDTH, T5_WIDTH, TextModels
from benchmarks.tiny_flux.workers import Worker

Chances = tuple[float, float, float]
FROM_SCRATCH: tuple[tuple[float, Chances], ...] = (
    (0.33, (1.0, 0.0, 0.0)),
    (0.72, (0.40, 0.48, 0.12)),
    (1.0, (0.22, 0.63, 0.15)),
)
CONTINUED: tuple[tuple[float, Chances], ...] = ((1.0, (0.27, 0.53, 0.20)),)
ZERO_AT_START = ("proj_out", "norm_out", "norm1.linear", "norm1_context.linear", ".norm.linear")


@dataclass(frozen=True)
class ModelSize:
    """Attention heads of 48 channels, and numbers of double and single blocks."""

    heads: int = 4
    doubles: int = 2
    singles: int = 6


@dataclass(frozen=True)
class TransformerConfig:
    """Budget, batches and rates of the transformer stage.

    `phases` are (until this share of the budget, chances of half / full / mixed steps); `rate` scales the learning
    rates; `hold` is the share of the budget after which they decay.
    """

    minutes: float = 83.0
    steps: int | None = None
    size: ModelSize = ModelSize()
    batch: dict[str, int] = field(default_factory=lambda: {"half": 48, "full": 12, "mixed": 20})
    phases: tuple[tuple[float, Chances], ...] = FROM_SCRATCH
    rate: float = 1.0
    warmup: int = 100
    hold: float = 0.55
    bfloat16: bool = False
    hard_shapes: bool = False
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


def build_transformer(size: ModelSize) -> FluxTransformer2DModel:
    """The untrained tiny transformer. Modulations and the output start at zero, so every block starts as identity."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=size.doubles,
        num_single_layers=size.singles,
        attention_head_dim=48,
        num_attention_heads=size.heads,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 22, 22),
    )
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out") or any(part in name for part in ZERO_AT_START[1:]) or name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02 if "time_text" in name else 0.8 * parameter.shape[1] ** -0.5)
    return model


class Trainer:
    """One worker's training run; all workers hold the same weights and optimiser state."""

    def __init__(
        self, worker: Worker, config: TransformerConfig, model: FluxTransformer2DModel, data: LatentData, folder: Path
    ) -> None:
        self.worker, self.config, self.folder = worker, config, folder
        dtype = torch.bfloat16 if config.bfloat16 else torch.float32
        self.network = FastForward(model, dtype, worker.device)
        self.optimiser = Optimiser(self.network.parameters, worker)
        self.budget = Budget(config.minutes, config.steps)
        self.seen = dict.fromkeys(KINDS, 0)
        self.log: list[dict[str, float]] = []
        if self.checkpoint.exists():
            self.restore()
        self.batches = Batches(data, config.seed, self.budget.step, worker.rank)

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
        kind = self.batches.choose_kind(config.chances(fraction))
        batch = self.batches.draw(kind, config.batch[kind]).to(self.worker.device)
        predicted = self.network(batch.noisy, batch.words, batch.pooled, batch.sigma, batch.positions)
        loss = (predicted - batch.velocity).square().mean()
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
            "weights": self.network.parameters.master,
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
        self.network.parameters.master.copy_(state["weights"])
        self.network.parameters.sync()
        self.optimiser.state = OptimiserState(**state["optimiser"])
        self.budget.step, self.budget.seconds = state["step"], state["seconds"]
        self.seen, self.log = state["seen"], state["log"]


def train_transformer(
    worker: Worker,
    config: TransformerConfig,
    init: Path | None,
    text: TextModels,
    latents: Path,
    folder: Path,
) -> None:
    """Train from scratch or from the transformer in `init`; the lead saves the averaged weights and the log."""
    torch.manual_seed(config.seed)
    model = build_transformer(config.size) if init is None else FluxTransformer2DModel.from_pretrained(init)
    data = LatentData.load(latents, text, config.hard_shapes)
    trainer = Trainer(worker, config, model.float(), data, folder)
    trainer.run()
    if worker.leads:
        averaged = trainer.network.parameters.state_dict(trainer.optimiser.state.average)
        model.load_state_dict({name: value.cpu() for name, value in averaged.items()})
        model.save_pretrained(folder / "transformer")
        record = {"config": asdict(config), "seen": trainer.seen, "log": trainer.log}
        (folder / "transformer_log.json").write_text(json.dumps(record, default=str))
