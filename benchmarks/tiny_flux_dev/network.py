"""The first weights of tiny FLUX dev: tiny FLUX's, with a guidance embedding that says nothing yet."""

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

SLOW = 2e-3
"""Radians per unit of 1000 x guidance. Faster sinusoids turn several times between guidance 1 and 8: to a network they
are noise, so they start without weight."""


def with_guidance(model: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A copy that takes a guidance scale and at first ignores it: the embedding's last layer is zero.

    Raises ValueError for a model that has an embedding of guidance already.
    """
    if model.config.guidance_embeds:
        raise ValueError("with_guidance needs a model without a guidance embedding; this one's guidance_embeds is True")
    copy = FluxTransformer2DModel.from_config({**model.config, "guidance_embeds": True})
    missing, unexpected = copy.load_state_dict(model.state_dict(), strict=False)
    strange = [name for name in missing if "guidance_embedder" not in name]
    if strange or unexpected:
        raise ValueError(f"the weights do not fit: missing {strange}, not known {unexpected}")
    embedder = copy.time_text_embed.guidance_embedder
    count = embedder.linear_1.weight.shape[1] // 2  # cosines, then sines
    frequencies = 10000.0 ** (-torch.arange(count) / count)
    with torch.no_grad():
        nn.init.normal_(embedder.linear_1.weight, std=0.1)
        embedder.linear_1.weight.mul_((frequencies <= SLOW).repeat(2))
        for parameter in (embedder.linear_1.bias, embedder.linear_2.weight, embedder.linear_2.bias):
            nn.init.zeros_(parameter)
    return copy
