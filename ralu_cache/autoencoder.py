"""A pipeline's autoencoder as functions on sampled latents and images in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ralu_cache.transition import Codec


@dataclass(frozen=True)
class Autoencoder:
    """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1] and back; None where the pipeline has none."""

    decode: Codec | None = None
    encode: Codec | None = None


def autoencoder_of(pipe: Any) -> Autoencoder:
    """The pipeline's, of images or, if it has a mean and a deviation for every latent channel, of single frames."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return Autoencoder()
    if vae.config.get("latents_mean") is not None:
        return _of_frames(vae)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0

    def decode(latents: Tensor) -> Tensor:
        return vae.decode((latents / scale + shift).to(vae.dtype), return_dict=False)[0].float()

    def encode(image: Tensor) -> Tensor:
        return (vae.encode(image.to(vae.dtype)).latent_dist.mode().float() - shift) * scale

    return Autoencoder(decode, encode)


def _of_frames(vae: Any) -> Autoencoder:
    """One for videos, of which an image is the only frame (Qwen-Image's)."""

    def statistics(like: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (like.new_tensor(vae.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
        return mean, deviation

    def decode(latents: Tensor) -> Tensor:
        mean, deviation = statistics(latents)
        video = (latents * deviation + mean).to(vae.dtype)[:, :, None]
        return vae.decode(video, return_dict=False)[0][:, :, 0].float()

    def encode(image: Tensor) -> Tensor:
        latents = vae.encode(image.to(vae.dtype)[:, :, None]).latent_dist.mode()[:, :, 0].float()
        mean, deviation = statistics(latents)
        return (latents - mean) / deviation

    return Autoencoder(decode, encode)
