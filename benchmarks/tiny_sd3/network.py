"""SD3Transformer2DModel on token sets: positions anywhere in its table, as the stages of a sampler need them."""

import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from benchmarks.tiny_sd3.parts import TABLE
from ralu_cache.adapters.sd3 import sample_table


class TokenVelocity(nn.Module):
    """The model's velocity on tokens (B, N, 16) in FLUX's order of channels: latent channel, row, column."""

    def __init__(self, model: SD3Transformer2DModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, words: Tensor, pooled: Tensor, sigma: Tensor, positions: Tensor, side: int
    ) -> Tensor:
        """Velocity (B, N, 16) of noisy tokens.

        Args:
            tokens: (B, N, 16).
            words: text features (B, L, 96).
            pooled: pooled text features (B, 96).
            sigma: noise level of every sample (B,), 1 noise to 0 clean.
            positions: (row, column) of the tokens (N, 2) on a grid of side x side.
            side: the table's centre crop of that size is what the positions count in.
        """
        model = self.model
        embed = model.pos_embed
        table = embed.pos_embed.view(TABLE, TABLE, -1)
        hidden = F.linear(tokens, embed.proj.weight.flatten(1), embed.proj.bias)
        hidden = hidden + sample_table(table, positions[None] + (TABLE - side) // 2)
        condition = model.time_text_embed(sigma * 1000, pooled)
        text = model.context_embedder(words)
        for block in model.transformer_blocks:
            text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=condition)
        out = model.proj_out(model.norm_out(hidden, condition))  # in the order row, column, latent channel
        return out.unflatten(-1, (2, 2, -1)).permute(0, 1, 4, 2, 3).flatten(2)
