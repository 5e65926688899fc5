"""A pipeline's autoencoder as functions on sampled latents and images in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ralu_cache.plane.transition import Codec


@dataclass(frozen=True)
class Autoencoder:
    """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1] and back; None where the pipeline has none.

    Of videos, the B are the frames of one, and images show one moment of each latent frame; none go back.
    """

    decode: Codec | None = None
    encode: Codec | None = None


def autoencoder_of(pipe: Any) -> Autoencoder:
    """The one that the pipeline has now: of images, of frames or, with a mean and a deviation a channel, of videos.

    None where its configuration does not say how latents are scaled.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or getattr(vae, "config", None) is None:
        return Autoencoder()
    if hasattr(pipe, "vae_scale_factor_temporal"):
        return Autoencoder(_video_decoder(vae))
    if vae.config.get("latents_mean") is not None:
        return _of_frames(vae)
    if isinstance(getattr(vae, "bn", None), nn.BatchNorm2d):
        return _normalised(vae)
    scale, shift = vae.config.get("scaling_factor") or 1.0, vae.config.get("shift_factor") or 0.0

    def decode(latents: Tensor) -> Tensor:
        return vae.decode((latents / scale + shift).to(vae.dtype), return_dict=False)[0].float()

    def encode(image: Tensor) -> Tensor:
        encoded = vae.encode(image.to(vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()  # the tiny one's
        return (latents.float() - shift) * scale

    return Autoencoder(decode, encode)


def _normalised(vae: Any) -> Autoencoder:
    """One whose latents are normalised place by place of 2x2 pixels, each with statistics of its own (FLUX.2's)."""

    def statistics(like: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = (found.to(like)[:, None, None] for found in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()

    def decode(latents: Tensor) -> Tensor:
        mean, deviation = statistics(latents)
        raw = F.pixel_shuffle(F.pixel_unshuffle(latents, 2) * deviation + mean, 2)
        return vae.decode(raw.to(vae.dtype), return_dict=False)[0].float()

    def encode(image: Tensor) -> Tensor:
        latents = F.pixel_unshuffle(vae.encode(image.to(vae.dtype)).latent_dist.mode().float(), 2)
        mean, deviation = statistics(latents)
        return F.pixel_shuffle((latents - mean) / deviation, 2)

    return Autoencoder(decode, encode)


def _of_frames(vae: Any) -> Autoencoder:
    """One for videos, of which an image is the only frame (Qwen-Image's)."""

    def decode(latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        video = (latents * deviation + mean).to(vae.dtype)[:, :, None]
        return vae.decode(video, return_dict=False)[0][:, :, 0].float()

    def encode(image: Tensor) -> Tensor:
        latents = vae.encode(image.to(vae.dtype)[:, :, None]).latent_dist.mode()[:, :, 0].float()
        mean, deviation = _statistics(vae, latents)
        return (latents - mean) / deviation

    return Autoencoder(decode, encode)


def _video_decoder(vae: Any) -> Codec:
    """A causal video autoencoder: the first latent frame is one image, each later one several, the last of them kept.

    Later frames cannot be decoded alone, so all of a video are decoded at once.
    """

    def decode(latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        video = (latents * deviation + mean).transpose(0, 1)[None]
        images = vae.decode(video.to(vae.dtype), return_dict=False)[0][0].transpose(0, 1).float()
        return images[torch.arange(len(latents)) * (len(images) - 1) // max(1, len(latents) - 1)]

    return decode


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel, (C, 1, 1), or of all of them."""
    if vae.config.get("latents_mean") is None:
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.get("scaling_factor") or 1.0
        return like.new_tensor(shift), like.new_tensor(1 / scale)
    mean, deviation = (like.new_tensor(vae.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
    return mean, deviation
