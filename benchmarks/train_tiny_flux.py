"""Train the tiny FluxPipeline that ships with the library, with one command.

    python -m benchmarks.train_tiny_flux --out DIR                                   # from nothing
    python -m benchmarks.train_tiny_flux --out DIR --init ralu_cache/tiny_flux       # go on from the shipped weights

Four stages, each skipped when its output exists in DIR, so that a killed run continues where it was: `vae/` (the
autoencoder), `latents/` (rendered and encoded scenes), `transformer/`, `pipeline/` (float16, ready to load). At the end
`transformer_log.json` and `loss.png` show the training. With --init, autoencoder and text encoders are taken over.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.tiny_flux.autoencoder import AutoencoderConfig, train_autoencoder
from benchmarks.tiny_flux.curve import plot_losses
from benchmarks.tiny_flux.latents import DataConfig, write_chunks
from benchmarks.tiny_flux.pipeline import load_text_models, save_pipeline
from benchmarks.tiny_flux.scenes import TWO_SHAPE_SHARE
from benchmarks.tiny_flux.trainer import FROM_SCRATCH
from benchmarks.tiny_flux.transformer import CONTINUED, ModelSize, TransformerConfig, train_transformer
from benchmarks.tiny_flux.workers import launch


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for all stages' outputs")
    parser.add_argument("--init", type=Path, help="saved tiny pipeline to go on from")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, help="processes (default: 2 on the CPU, 1 on CUDA)")
    budget = parser.add_argument_group("budget")
    budget.add_argument("--minutes", type=float, default=83.0, help="active minutes of transformer training")
    budget.add_argument("--steps", type=int, help="transformer steps, instead of minutes")
    budget.add_argument("--vae-minutes", type=float, default=20.0, help="active minutes of autoencoder training")
    budget.add_argument("--vae-steps", type=int, help="autoencoder steps, instead of minutes")
    data = parser.add_argument_group("data")
    data.add_argument("--vae-scenes", type=int, default=4000, help="scenes that the autoencoder is trained on")
    data.add_argument("--scenes", type=int, default=16000, help="number of rendered scenes")
    data.add_argument("--two-shape-share", type=float, default=TWO_SHAPE_SHARE, help="share of scenes with two shapes")
    data.add_argument("--data-seed", type=int, default=1234, help="seed of the scenes; change it for fresh ones")
    data.add_argument("--hard-shapes", action="store_true", help="draw stars, circles and hearts oftener")
    training = parser.add_argument_group("training")
    training.add_argument("--size", type=int, nargs=3, default=(4, 2, 6), metavar=("HEADS", "DOUBLES", "SINGLES"))
    training.add_argument("--batch-scale", type=float, default=1.0, help="factor on the batch sizes 48 / 12 / 20")
    training.add_argument("--rate", type=float, help="factor on the learning rates (default: 1, or 0.25 with --init)")
    training.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    training.add_argument("--hold", type=float, default=0.55, help="share of the budget before the rates decay")
    training.add_argument("--half-only", action="store_true", help="train on half-size scenes only")
    training.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 (always on CUDA)")
    return parser


def transformer_config(options: argparse.Namespace) -> TransformerConfig:
    """The transformer stage's configuration from the command line."""
    phases = FROM_SCRATCH if options.init is None else CONTINUED
    config = TransformerConfig(
        minutes=options.minutes,
        steps=options.steps,
        size=ModelSize(*options.size),
        phases=((1.0, (1.0, 0.0, 0.0)),) if options.half_only else phases,
        rate=options.rate or (1.0 if options.init is None else 0.25),
        warmup=options.warmup,
        hold=options.hold,
        bfloat16=options.bfloat16 or options.device == "cuda",
        hard_shapes=options.hard_shapes,
    )
    batch = {kind: max(1, round(size * options.batch_scale)) for kind, size in config.batch.items()}
    return replace(config, batch=batch)


def main(arguments: list[str] | None = None) -> None:
    """Run every stage whose output is missing."""
    options = build_parser().parse_args(arguments)
    out: Path = options.out
    device, workers = options.device, options.workers or (1 if options.device == "cuda" else 2)
    out.mkdir(parents=True, exist_ok=True)
    text = load_text_models(options.init)

    vae = out / "vae" if options.init is None else options.init / "vae"
    if not vae.exists():
        config = AutoencoderConfig(options.vae_minutes, options.vae_steps, scenes=options.vae_scenes)
        train_autoencoder(config, torch.device(device), vae)

    latents = out / "latents"
    latents.mkdir(exist_ok=True)
    data = DataConfig(options.scenes, options.two_shape_share, options.data_seed)
    if len(list(latents.glob("chunk_*.safetensors"))) < len(data.chunks()):
        launch(write_chunks, device, workers, data, vae, text, latents)

    transformer = out / "transformer"
    if not transformer.exists():
        init = None if options.init is None else options.init / "transformer"
        launch(train_transformer, device, workers, transformer_config(options), init, text, latents, out)
        plot_losses(out / "transformer_log.json", out / "loss.png", "tiny FLUX: training loss")

    if not (out / "pipeline").exists():
        save_pipeline(transformer, vae, text, out / "pipeline")
    print(f"pipeline: {out / 'pipeline'}")


if __name__ == "__main__":
    main()
