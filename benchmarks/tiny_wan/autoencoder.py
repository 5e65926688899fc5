"""The autoencoder: a small AutoencoderKLWan whose latents are those of tiny FLUX's autoencoder, two frames at a time.

A latent frame's eight channels are tiny FLUX's four of one frame and its four of the next; the first frame, which Wan
keeps on its own, has its four twice. So the encoder learns given latents, the decoder to draw from them, and the
transformer may be trained before either is. What tiny FLUX's latents were trained for holds for these: pooled ones are
nearly those of the scene at half size, so that a coarse token means the same as the four fine ones that it covers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from benchmarks.tiny_flux.autoencoder import gradient_error, to_tensor
from benchmarks.tiny_flux.budget import Budget, learning_rate_factor
from benchmarks.tiny_wan.scenes import Video, sample_clip

CHANNELS = 8
WIDTH = 32
CLIP_FRAMES = 9  # of a training sample; encoding wants 1 + 4 n
LEARNING_RATE, EMA_DECAY, GRADIENT_WEIGHT = 2e-3, 0.998, 0.5
LOG_VARIANCE, LOG_VARIANCE_WEIGHT = -6.0, 1e-3
LATENT_NOISE = 0.1  # largest deviation of the noise on what the decoder is trained with: samples are not exact either
LOG_EVERY, SAVE_EVERY = 50, 250


@dataclass(frozen=True)
class AutoencoderConfig:
    """Budget and batch; `clips` is how many videos the training samples come from. `bfloat16`: compute in it."""

    minutes: float = 10.0
    steps: int | None = None
    batch: int = 6
    clips: int = 1000
    seed: int = 0
    bfloat16: bool = False


def build_autoencoder() -> AutoencoderKLWan:
    """Untrained, of the make of Wan 2.2's: pixels in blocks of 2x2, then one step down in space and time; 4x and 2x."""
    return AutoencoderKLWan(
        base_dim=WIDTH, z_dim=CHANNELS, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS, is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_temporal=2, scale_factor_spatial=4,
    )  # fmt: skip


@torch.no_grad()
def frame_latents(flux: AutoencoderKL, videos: Video) -> Tensor:
    """Tiny FLUX's normalised latents (n, frames, 4, Y/4, X/4) of videos (n, frames, Y, X, 3)."""
    pieces = []
    for video in videos:
        mode = flux.encode(to_tensor(video)).latent_dist.mode()
        pieces.append((mode - flux.config.shift_factor) * flux.config.scaling_factor)
    return torch.stack(pieces)


def pair_frames(latents: Tensor) -> Tensor:
    """Latents of frames (n, 1 + 2 k, 4, H, W) -> of the video (n, 8, 1 + k, H, W)."""
    paired = torch.cat([latents[:, :1], latents], 1).unflatten(1, (-1, 2))
    return paired.flatten(2, 3).transpose(1, 2)


def to_video(frames: Video) -> Tensor:
    """Frames (n, f, Y, X, 3) as uint8 -> (n, 3, f, Y, X) in [-1, 1]."""
    return to_tensor(frames.reshape(-1, *frames.shape[2:])).unflatten(0, frames.shape[:2]).transpose(1, 2)


class AutoencoderTrainer:
    """The training run, resumable from its checkpoint."""

    def __init__(self, config: AutoencoderConfig, checkpoint: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.checkpoint = config, checkpoint
        self.vae = build_autoencoder()
        self.optimiser = torch.optim.AdamW(self.vae.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
        self.average = {name: value.clone() for name, value in self.vae.state_dict().items()}
        self.budget = Budget(config.minutes, config.steps)
        if checkpoint.exists():
            self.restore()

    def run(self, videos: Video, latents: Tensor) -> None:
        """Train until the budget is used up; the model then holds the averaged weights."""
        rng = np.random.default_rng([self.config.seed, self.budget.step])
        errors: list[tuple[float, float]] = []
        while self.budget.fraction < 1:
            index = rng.integers(len(videos), size=self.config.batch)
            first = int(rng.integers(videos.shape[1] - CLIP_FRAMES + 1))
            part = slice(first, first + CLIP_FRAMES)
            errors.append(self.step(to_video(videos[index, part]), pair_frames(latents[index, part].float()), rng))
            if self.budget.step % LOG_EVERY == 0:
                drawn, encoded = np.mean(errors, 0)
                psnr = 10 * float(np.log10(4 / drawn))
                print(
                    f"autoencoder: step {self.budget.step}, {psnr:.2f} dB, latents missed by {encoded:.4f}, "
                    f"{self.budget.left()}", flush=True,
                )  # fmt: skip
                errors = []
            if self.budget.step % SAVE_EVERY == 0:
                self.save()
        self.vae.load_state_dict(self.average)

    def step(self, x: Tensor, z: Tensor, rng: np.random.Generator) -> tuple[float, float]:
        """One update with videos and their latents; the mean squared errors of decoder and encoder."""
        factor = learning_rate_factor(self.budget.step, self.budget.fraction, warmup=100, hold=0.4)
        for group in self.optimiser.param_groups:
            group["lr"] = LEARNING_RATE * factor
        noisy = z + torch.randn(z.shape) * float(rng.uniform(0, LATENT_NOISE))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            mean, log_variance = self.vae._encode(x).float().chunk(2, 1)
            y = decode(self.vae, noisy).float()
        encoded, drawn = F.mse_loss(mean, z), F.mse_loss(y, x)
        constant = (log_variance - LOG_VARIANCE).square().mean()
        loss = encoded + LOG_VARIANCE_WEIGHT * constant
        loss = loss + F.l1_loss(y, x) + drawn + GRADIENT_WEIGHT * gradient_error(y, x)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step()
        self.budget.tick()
        decay = min(EMA_DECAY, self.budget.step / (self.budget.step + 10))
        for name, value in self.vae.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return drawn.item(), encoded.item()

    def save(self) -> None:
        """Write the checkpoint; a kill while writing leaves the previous one."""
        state = {"model": self.vae.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average}
        unfinished = self.checkpoint.with_suffix(".tmp")
        torch.save(state | {"step": self.budget.step, "seconds": self.budget.seconds}, unfinished)
        unfinished.replace(self.checkpoint)

    def restore(self) -> None:
        """Continue from the checkpoint."""
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.vae.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.budget.step, self.budget.seconds = state["step"], state["seconds"]


def decode(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """The stock decoding without its clamp, which has no gradient where it would be needed."""
    vae.clear_cache()
    hidden, pieces = vae.post_quant_conv(z), []
    for frame in range(z.shape[2]):
        vae._conv_idx = [0]
        pieces.append(
            vae.decoder(
                hidden[:, :, frame : frame + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx,
                first_chunk=frame == 0,
            )
        )  # fmt: skip
    vae.clear_cache()
    return unpatchify(torch.cat(pieces, 2), vae.config.patch_size)


def train_autoencoder(config: AutoencoderConfig, flux: Path, folder: Path) -> None:
    """Render the clips, encode their frames with the tiny FLUX in `flux`, train, and save to `folder`."""
    rng = np.random.default_rng(config.seed)
    videos = np.stack([sample_clip(rng).frames() for _ in range(config.clips)])
    teacher = AutoencoderKL.from_pretrained(flux / "vae", dtype=torch.float32)
    trainer = AutoencoderTrainer(config, folder.parent / "autoencoder_checkpoint.pt")
    trainer.run(videos, frame_latents(teacher, videos).half())
    trainer.vae.save_pretrained(folder)
