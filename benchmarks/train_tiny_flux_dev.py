"""Distil the guidance of tiny FLUX into the tiny FLUX dev pipeline that ships with the library, with one command.

    python -m benchmarks.train_tiny_flux_dev --out DIR [--minutes 78] [--first TRANSFORMER]

Stages, each skipped when its output exists in DIR, so that a killed run continues where it was: `latents/` (rendered
and encoded scenes, for mixed token sets), `transformer/`, `pipeline/`; at the end `transformer_log.json`, `loss.png`.
One thread; its checkpoint is written every two minutes.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.tiny_flux.curve import plot_losses
from benchmarks.tiny_flux.latents import DataConfig, write_chunks
from benchmarks.tiny_flux.pipeline import load_text_models, save_pipeline
from benchmarks.tiny_flux.trainer import TrainingConfig
from benchmarks.tiny_flux.workers import launch
from benchmarks.tiny_flux_dev.distil import train
from ralu_cache.models.embedded import TINY_FLUX

PHASES = ((1.0, (0.22, 0.66, 0.12)),)
"""The chances of half-size, full-size and mixed batches."""
BATCH = {"half": 22, "full": 8, "mixed": 11}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for all stages' outputs")
    parser.add_argument("--flux", type=Path, default=TINY_FLUX.folder, help="the teacher's pipeline (the shipped one)")
    parser.add_argument("--first", type=Path, help="go on from this transformer, distilled before")
    parser.add_argument("--minutes", type=float, default=78.0, help="active minutes of training")
    parser.add_argument("--steps", type=int, help="steps, instead of minutes")
    parser.add_argument("--scenes", type=int, default=2500, help="number of rendered scenes for the mixed sets")
    parser.add_argument("--data-seed", type=int, default=11, help="seed of the rendered scenes")
    parser.add_argument("--batch-scale", type=float, default=1.0, help="factor on the batch sizes 22 / 8 / 11")
    parser.add_argument("--rate", type=float, default=0.15, help="factor on the learning rates")
    parser.add_argument("--hold", type=float, default=0.4, help="share of the budget before the rates decay")
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead of bfloat16")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run every stage whose output is missing."""
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(1)
    out, flux = options.out, options.flux
    latents, transformer = out / "latents", out / "transformer"
    latents.mkdir(parents=True, exist_ok=True)
    text = load_text_models(flux)
    data = DataConfig(options.scenes, seed=options.data_seed)
    launch(write_chunks, "cpu", 1, data, flux / "vae", text, latents)
    if not transformer.exists():
        batch = {kind: max(1, round(size * options.batch_scale)) for kind, size in BATCH.items()}
        config = TrainingConfig(options.minutes, options.steps, batch, PHASES, options.rate, hold=options.hold)
        dtype = torch.float32 if options.float32 else torch.bfloat16
        launch(train, "cpu", 1, config, flux, text, latents, out, dtype, options.first)
        plot_losses(out / "transformer_log.json", out / "loss.png", "tiny FLUX dev: weighted squared error")
    if not (out / "pipeline").exists():
        save_pipeline(transformer, flux / "vae", text, out / "pipeline")
    print(f"pipeline: {out / 'pipeline'}")


if __name__ == "__main__":
    main()
