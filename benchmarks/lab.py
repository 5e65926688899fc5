"""What the studies on the embedded model share: prompts, seeds, runs, metrics, strips of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import RALU, Report, accelerate
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.report.figures import save_grid
from ralu_cache.temporal import Policy

GUIDANCE: dict[str, dict[str, Any]] = {"unguided": {}, "guided": {"negative_prompt": "", "true_cfg_scale": 3.0}}


class Lab:
    """The embedded model, its prompts and seeds, and the runs to compare."""

    def __init__(self, prompts: int, seed: int = 2026) -> None:
        self.pipe = TINY_FLUX.load()
        self.pipe.set_progress_bar_config(disable=True)
        rng = np.random.default_rng(seed)
        self.prompts = [sample_scene(rng).prompt for _ in range(prompts)]

    def images(self, steps: int, guidance: str) -> Tensor:
        """(B, 3, 128, 128) in [0, 1]; image i has the seed i."""
        generators = [torch.Generator().manual_seed(i) for i in range(len(self.prompts))]
        return self.pipe(
            self.prompts, height=128, width=128, num_inference_steps=steps, max_sequence_length=16,
            generator=generators, output_type="pt", **GUIDANCE[guidance],
        ).images.float()  # fmt: skip

    def latents(self, steps: int, batch: int, size: int = 128) -> None:
        """An unguided run of the first `batch` prompts that ends with the latents; for timing."""
        self.pipe(
            self.prompts[:batch], height=size, width=size, num_inference_steps=steps, max_sequence_length=16,
            generator=[torch.Generator().manual_seed(i) for i in range(batch)], output_type="latent",
        )  # fmt: skip

    def accelerated(
        self, steps: int, guidance: str, spatial: str | RALU | None = None, temporal: str | Policy | None = None,
        guided: str | None = None,
    ) -> tuple[Tensor, Report]:  # fmt: skip
        """The images of an accelerated run, and its report. guidance: of the call; guided: `accelerate`'s guidance."""
        with accelerate(self.pipe, spatial=spatial, temporal=temporal, guidance=guided) as handle:
            images = self.images(steps, guidance)
            assert handle.report is not None
            return images, handle.report


def compare(images: Tensor, reference: Tensor) -> tuple[Tensor, float]:
    """(PSNR of each image in dB, mean SSIM)."""
    psnr = -10 * (images - reference).square().mean((1, 2, 3)).clamp_min(1e-10).log10()
    return psnr, float(ssim(images, reference, data_range=1.0))


def strip(rows: dict[str, Tensor], path: Path, columns: int = 8) -> None:
    """The first images of each row (B, 3, Y, X), labelled; image i has the seed i."""
    shown = {name: images[:columns].permute(0, 2, 3, 1).numpy() for name, images in rows.items()}
    count = len(next(iter(shown.values())))
    save_grid(shown, [f"seed {seed}" for seed in range(count)], path)
