"""Train the tiny StableDiffusion3Pipeline that ships with the library, with one command.

    python -m benchmarks.train_tiny_sd3 --out DIR                                            # from tiny FLUX's weights
    python -m benchmarks.train_tiny_sd3 --out DIR --init ralu_cache/tiny_sd3 --data-seed 4   # go on

Tiny FLUX (the shipped one, or --flux DIR) lends its autoencoder, T5 and first weights, and is the teacher. Stages as in
`benchmarks.train_tiny_flux`, each skipped when its output exists in DIR, so that a killed run continues where it was:
`latents/`, `transformer/`, `pipeline/`; at the end `transformer_log.json` and `loss.png`.
"""

import argparse
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from benchmarks.tiny_flux.curve import plot_losses
from benchmarks.tiny_flux.latents import DataConfig, write_chunks
from benchmarks.tiny_flux.pipeline import load_text_models
from benchmarks.tiny_flux.trainer import TrainingConfig
from benchmarks.tiny_flux.workers import launch
from benchmarks.tiny_sd3.distil import train
from benchmarks.tiny_sd3.parts import assemble, build_transformer, save_pipeline
from benchmarks.tiny_sd3.transplant import transplant

PHASES = ((0.25, (0.60, 0.30, 0.10)), (1.0, (0.25, 0.55, 0.20)))
"""Until this share of the budget, the chances of half-size, full-size and mixed batches."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for all stages' outputs")
    parser.add_argument("--flux", type=Path, default=Path("ralu_cache/tiny_flux"), help="the teacher's pipeline")
    parser.add_argument("--init", type=Path, help="saved tiny SD3 pipeline to go on from")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--minutes", type=float, default=80.0, help="active minutes of training")
    parser.add_argument("--steps", type=int, help="steps, instead of minutes")
    parser.add_argument("--scenes", type=int, default=12000, help="number of rendered scenes")
    parser.add_argument("--two-shape-share", type=float, default=0.15, help="share of scenes with two shapes")
    parser.add_argument("--data-seed", type=int, default=3, help="seed of the scenes")
    parser.add_argument("--batch-scale", type=float, default=1.0, help="factor on the batch sizes 24 / 6 / 10")
    parser.add_argument("--rate", type=float, help="factor on the learning rates (default: 1, or 0.15 with --init)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run every stage whose output is missing."""
    options = build_parser().parse_args(arguments)
    out, flux = options.out, options.flux
    latents, transformer = out / "latents", out / "transformer"
    latents.mkdir(parents=True, exist_ok=True)
    text = load_text_models(flux)

    data = DataConfig(options.scenes, options.two_shape_share, options.data_seed)
    if len(list(latents.glob("chunk_*.safetensors"))) < len(data.chunks()):
        launch(write_chunks, "cpu", options.workers, data, flux / "vae", text, latents)

    if not transformer.exists():
        sizes = {"half": 24, "full": 6, "mixed": 10}
        batch = {kind: max(1, round(size * options.batch_scale)) for kind, size in sizes.items()}
        rate = options.rate or (1.0 if options.init is None else 0.15)
        config = TrainingConfig(options.minutes, options.steps, batch, PHASES, rate, hold=0.45)
        torch.manual_seed(config.seed)
        if options.init is None:
            model = build_transformer()
            transplant(model, FluxTransformer2DModel.from_pretrained(flux / "transformer", dtype=torch.float32))
        else:
            model = SD3Transformer2DModel.from_pretrained(options.init / "transformer", dtype=torch.float32)
        launch(train, "cpu", options.workers, config, model.float(), flux, text, latents, out)
        plot_losses(out / "transformer_log.json", out / "loss.png", "tiny SD3: training loss")

    if not (out / "pipeline").exists():
        trained = SD3Transformer2DModel.from_pretrained(transformer, dtype=torch.float32)
        save_pipeline(assemble(trained, flux), out / "pipeline")
    print(f"pipeline: {out / 'pipeline'}")


if __name__ == "__main__":
    main()
