"""Rectified-flow training of the tiny FluxTransformer2DModel on encoded scenes at several resolutions."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from benchmarks.tiny_flux.batches import Batches
from benchmarks.tiny_flux.fast_forward import FastForward
from benchmarks.tiny_flux.latents import LatentData
from benchmarks.tiny_flux.text import CLIP_WIDTH, T5_WIDTH, TextModels
from benchmarks.tiny_flux.trainer import Chances, Trainer, TrainingConfig
from benchmarks.tiny_flux.workers import Worker

CONTINUED: tuple[tuple[float, Chances], ...] = ((1.0, (0.27, 0.53, 0.20)),)
ZERO_AT_START = ("proj_out", "norm_out", "norm1.linear", "norm1_context.linear", ".norm.linear")


@dataclass(frozen=True)
class ModelSize:
    """Attention heads of 48 channels, and numbers of double and single blocks."""

    heads: int = 4
    doubles: int = 2
    singles: int = 6


@dataclass(frozen=True)
class TransformerConfig(TrainingConfig):
    """The transformer stage of tiny FLUX; `hard_shapes` draws stars, circles and hearts oftener."""

    size: ModelSize = ModelSize()
    bfloat16: bool = False
    hard_shapes: bool = False


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


class FluxTask:
    """The mean squared error of the predicted velocity."""

    def __init__(self, worker: Worker, config: TransformerConfig, model: FluxTransformer2DModel, data: LatentData):
        self.network = FastForward(model, torch.bfloat16 if config.bfloat16 else torch.float32, worker.device)
        self.parameters, self._data, self._device = self.network.parameters, data, worker.device

    def begin(self, seed: int, step: int, rank: int) -> None:
        """See `Task.begin`."""
        self._batches = Batches(self._data, seed, step, rank)

    def choose_kind(self, chances: Chances) -> str:
        """See `Task.choose_kind`."""
        return self._batches.choose_kind(chances)

    def loss(self, kind: str, count: int, fraction: float) -> Tensor:
        """See `Task.loss`."""
        batch = self._batches.draw(kind, count).to(self._device)
        predicted = self.network(batch.noisy, batch.words, batch.pooled, batch.sigma, batch.positions)
        return (predicted - batch.velocity).square().mean()


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
    trainer = Trainer(worker, config, FluxTask(worker, config, model.float(), data), folder)
    trainer.run()
    if worker.leads:
        model.load_state_dict(trainer.averaged())
        model.save_pretrained(folder / "transformer")
        trainer.write_log()
