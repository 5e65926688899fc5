"""The autoencoder: AutoencoderKL with 4x downsampling and 4 latent channels.

Loss: L1 + MSE + gradient L1 + a small KL + a scale term that makes decode(pool(z)) agree with pool(x), so that the
latents of a scene at half and at full size agree and a coarse token means the same as the four fine ones it covers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.tiny_flux.budget import Budget, learning_rate_factor
from benchmarks.tiny_flux.render import Image, halve, render
from benchmarks.tiny_flux.scenes import sample_scene
from benchmarks.tiny_flux.tokens import pack

LATENT_CHANNELS, CROP = 4, 64
LEARNING_RATE, EMA_DECAY = 1.2e-3, 0.998
GRADIENT_WEIGHT, KL_WEIGHT, SCALE_WEIGHT, SCALE_EVERY = 0.5, 3e-4, 0.3, 3
HALF_SIZE_SHARE = 0.35
LOG_EVERY, SAVE_EVERY = 50, 500


@dataclass(frozen=True)
class AutoencoderConfig:
    """Budget and batch of the autoencoder stage; `scenes` is how many images its crops come from."""

    minutes: float = 20.0
    steps: int | None = None
    batch: int = 16
    scenes: int = 4000
    seed: int = 0


def build_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder of the tiny pipeline."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def to_tensor(images: np.ndarray) -> Tensor:
    """(n, H, W, 3) uint8 to (n, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, batch: int = 16) -> Tensor:
    """Latents' mode as packed tokens (n, N, 16), shifted and scaled as FluxPipeline expects; float32 on the CPU."""
    pieces = []
    for start in range(0, len(images), batch):
        mode = vae.encode(to_tensor(images[start : start + batch]).to(vae.device)).latent_dist.mode()
        pieces.append(pack((mode - vae.config.shift_factor) * vae.config.scaling_factor).cpu())
    return torch.cat(pieces)


def crops(rng: np.random.Generator, pool: list[Image], count: int) -> Tensor:
    """Random 64-pixel training images: whole scenes at half size, or crops at full size; mirrored at random."""
    images = []
    for _ in range(count):
        image = pool[rng.integers(len(pool))]
        if rng.random() < HALF_SIZE_SHARE:
            image = halve(image)
        y, x = rng.integers(0, np.array(image.shape[:2]) - CROP + 1)
        image = image[y : y + CROP, x : x + CROP]
        images.append(image[:, ::-1] if rng.random() < 0.5 else image)
    return to_tensor(np.stack(images))


def gradient_error(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of the horizontal and vertical differences of two image batches."""
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def autoencoder_loss(vae: AutoencoderKL, x: Tensor, with_scale: bool) -> tuple[Tensor, Tensor]:
    """The training loss of a batch of images, and its mean squared reconstruction error."""
    mean, log_variance = vae.encoder(x).float().chunk(2, 1)
    log_variance = log_variance.clamp(-20, 10)
    z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    y = vae.decoder(z).float()
    mse = F.mse_loss(y, x)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = F.l1_loss(y, x) + mse + GRADIENT_WEIGHT * gradient_error(y, x) + KL_WEIGHT * kl
    if with_scale:
        loss = loss + SCALE_WEIGHT * F.l1_loss(vae.decoder(F.avg_pool2d(z, 2)).float(), F.avg_pool2d(x, 2))
    return loss, mse.detach()


class AutoencoderTrainer:
    """The autoencoder's training run, resumable from its checkpoint."""

    def __init__(self, config: AutoencoderConfig, device: torch.device, checkpoint: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, self.checkpoint = config, device, checkpoint
        self.vae = build_autoencoder().to(device)
        self.optimiser = torch.optim.AdamW(self.vae.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
        self.average = {name: value.clone() for name, value in self.vae.state_dict().items()}
        self.budget = Budget(config.minutes, config.steps)
        if checkpoint.exists():
            self.restore()

    def run(self, pool: list[Image]) -> None:
        """Train until the budget is used up; the model then holds the averaged weights."""
        rng = np.random.default_rng([self.config.seed, self.budget.step])
        errors: list[float] = []
        while self.budget.fraction < 1:
            errors.append(self.step(crops(rng, pool, self.config.batch).to(self.device)))
            if self.budget.step % LOG_EVERY == 0:
                psnr = 10 * float(np.log10(4 / np.mean(errors)))
                print(f"autoencoder: step {self.budget.step}, {psnr:.2f} dB, {self.budget.left()}", flush=True)
                errors = []
            if self.budget.step % SAVE_EVERY == 0:
                self.save()
        self.vae.load_state_dict(self.average)

    def step(self, x: Tensor) -> float:
        """One update with a batch of images; returns the mean squared error."""
        factor = learning_rate_factor(self.budget.step, self.budget.fraction, warmup=100, hold=0.4)
        for group in self.optimiser.param_groups:
            group["lr"] = LEARNING_RATE * factor
        loss, mse = autoencoder_loss(self.vae, x, with_scale=self.budget.step % SCALE_EVERY == 0)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step()
        self.budget.tick()
        decay = min(EMA_DECAY, self.budget.step / (self.budget.step + 10))
        for name, value in self.vae.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return mse.item()

    def save(self) -> None:
        """Write the checkpoint; a kill while writing leaves the previous one."""
        state = {"model": self.vae.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average}
        unfinished = self.checkpoint.with_suffix(".tmp")
        torch.save(state | {"step": self.budget.step, "seconds": self.budget.seconds}, unfinished)
        unfinished.replace(self.checkpoint)

    def restore(self) -> None:
        """Continue from the checkpoint."""
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.vae.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.budget.step, self.budget.seconds = state["step"], state["seconds"]


def train_autoencoder(config: AutoencoderConfig, device: torch.device, folder: Path) -> None:
    """Render the scenes, train, measure the latents' mean and deviation, and save to `folder`."""
    rng = np.random.default_rng(config.seed)
    pool = [render(sample_scene(rng)) for _ in range(config.scenes)]
    trainer = AutoencoderTrainer(config, device, folder.parent / "autoencoder_checkpoint.pt")
    trainer.run(pool)
    normalise(trainer.vae, pool[:400])
    trainer.vae.save_pretrained(folder)


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: list[Image]) -> None:
    """Set the shift and scale that give the latents of both sizes mean 0 and deviation 1."""
    both = (np.stack(images), np.stack([halve(image) for image in images]))
    values = torch.cat([encode(vae, size).flatten() for size in both])
    vae.register_to_config(shift_factor=values.mean().item(), scaling_factor=1 / values.std().item())
