"""A pipeline's autoencoder, as scorers and lifts want it: two functions on sampled latents and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ralu_cache.run import Autoencoder


def find_autoencoder(pipe: Any) -> Autoencoder:
    """The pipeline's, on latents (B, C, h, w) and images (B, 3, H, W) in [-1, 1]; if it has none, without functions.

    An autoencoder for videos (Qwen-Image's) takes the image as their one frame, and normalises each channel.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return Autoencoder()
    config, video = vae.config, "latents_std" in vae.config and vae.config.latents_std is not None

    def per_channel(values: list[float], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device).view(-1, 1, 1)

    def decode(latents: Tensor) -> Tensor:
        if not video:
            scaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
            return vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
        scaled = latents * per_channel(config.latents_std, latents) + per_channel(config.latents_mean, latents)
        return vae.decode(scaled.to(vae.dtype)[:, :, None], return_dict=False)[0][:, :, 0].float()

    def encode(image: Tensor) -> Tensor:
        if not video:
            mode = vae.encode(image.to(vae.dtype)).latent_dist.mode().float()
            return (mode - (config.shift_factor or 0.0)) * config.scaling_factor
        mode = vae.encode(image.to(vae.dtype)[:, :, None]).latent_dist.mode()[:, :, 0].float()
        return (mode - per_channel(config.latents_mean, mode)) / per_channel(config.latents_std, mode)

    return Autoencoder(decode, encode)
