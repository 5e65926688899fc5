"""A made-up model and pipeline of no known family: what adapters/README.md adds to the library."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

WIDTH, CHANNELS, WORDS = 32, 4, 8


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + F.scaled_dot_product_attention(*self.qkv(self.norm(hidden)).chunk(3, -1))
        return hidden + self.mlp(hidden.relu())


class ToyTransformer(nn.Module):
    """Packed tokens (B, n, 4 C) at positions (B, n, 2), level (B,), prompt (B, 8) -> velocity (B, n, 4 C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4 * CHANNELS, WIDTH), nn.Linear(2, WIDTH)
        self.time, self.text = nn.Linear(1, WIDTH), nn.Linear(WORDS, WIDTH)
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(3))
        self.head = nn.Linear(WIDTH, 4 * CHANNELS)

    def start(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        """The input (B, n, d) of the first block."""
        condition = self.time(timestep[:, None]) + self.text(prompt)
        return self.embed(hidden_states) + self.place(positions.sin()) + condition[:, None]

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden = self.start(hidden_states, positions, timestep, prompt)
        for block in self.blocks:
            hidden = block(hidden)
        return (self.head(hidden),)


class ToyPipeline(DiffusionPipeline):
    """Draws latents (B, n, 4 C); guidance is a second call, without the prompt."""

    vae_scale_factor = 8

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(
        self, prompt: Tensor, height: int = 128, width: int = 192, num_inference_steps: int = 8,
        guidance_scale: float = 3.0, generator: Any = None,
    ) -> Tensor:  # fmt: skip
        rows, columns = height // 16, width // 16
        latents = torch.randn(len(prompt), rows * columns, 4 * CHANNELS, generator=generator)
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        self.scheduler.set_timesteps(num_inference_steps)
        with self.progress_bar(total=num_inference_steps) as bar:
            for t in self.scheduler.timesteps:
                call = {"hidden_states": latents, "timestep": (t / 1000).expand(len(prompt))}
                call["positions"] = positions.expand(len(prompt), -1, -1)
                velocity = self.transformer(**call, prompt=prompt)[0]
                if guidance_scale > 1:
                    without = self.transformer(**call, prompt=torch.zeros_like(prompt))[0]
                    velocity = without + guidance_scale * (velocity - without)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
                bar.update()
        return latents


def make_toy_pipeline() -> ToyPipeline:
    torch.manual_seed(0)
    return ToyPipeline(ToyTransformer().eval(), FlowMatchEulerDiscreteScheduler(shift=3.0))
