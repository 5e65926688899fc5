"""Train the tiny WanPipeline that ships with the library, with one command, on one CPU core.

    python -m benchmarks.train_tiny_wan --out DIR --bfloat16                                            # from nothing
    python -m benchmarks.train_tiny_wan --out DIR --bfloat16 --init ralu_cache/tiny_wan --data-seed 6   # go on

Tiny FLUX (the shipped one, or --flux DIR) lends its T5, and the latents that the autoencoder is taught.
Stages, each skipped when its output exists in DIR, so that a killed run continues where it was: `vae/`, `latents/`,
`transformer/`, `pipeline/`; at the end `transformer_log.json` and `loss.png`. --init lends its autoencoder.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from benchmarks.tiny_flux.curve import plot_losses
from benchmarks.tiny_flux.trainer import TrainingConfig
from benchmarks.tiny_flux.workers import launch
from benchmarks.tiny_wan.autoencoder import AutoencoderConfig, train_autoencoder
from benchmarks.tiny_wan.latents import write_chunks
from benchmarks.tiny_wan.parts import assemble, build_text, build_transformer, save_pipeline
from benchmarks.tiny_wan.task import train

PHASES = ((0.3, (0.60, 0.25, 0.15)), (1.0, (0.30, 0.50, 0.20)))
"""Until this share of the budget, the chances of half-size, full-size and mixed batches."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for all stages' outputs")
    parser.add_argument("--flux", type=Path, default=Path("ralu_cache/tiny_flux"), help="a tiny FLUX pipeline")
    parser.add_argument("--init", type=Path, help="saved tiny Wan pipeline to go on from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16")
    budget = parser.add_argument_group("budget")
    budget.add_argument("--minutes", type=float, default=65.0, help="active minutes of transformer training")
    budget.add_argument("--steps", type=int, help="transformer steps, instead of minutes")
    budget.add_argument("--vae-minutes", type=float, default=11.0, help="active minutes of autoencoder training")
    budget.add_argument("--vae-steps", type=int, help="autoencoder steps, instead of minutes")
    parser.add_argument("--vae-batch", type=int, default=6, help="clips in a step of the autoencoder")
    parser.add_argument("--vae-clips", type=int, default=1000, help="clips that the autoencoder is trained on")
    parser.add_argument("--clips", type=int, default=6000, help="clips that the transformer is trained on")
    parser.add_argument("--data-seed", type=int, default=5, help="seed of the transformer's clips")
    parser.add_argument("--batch-scale", type=float, default=1.0, help="factor on the batch sizes 40 / 14 / 20")
    parser.add_argument("--rate", type=float, help="factor on the learning rates (default: 1, or 0.15 with --init)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run every stage whose output is missing."""
    options = build_parser().parse_args(arguments)
    out, flux = options.out, options.flux
    torch.set_num_threads(options.threads)
    latents = out / "latents"
    latents.mkdir(parents=True, exist_ok=True)
    text = build_text(flux)

    vae_folder = out / "vae" if options.init is None else options.init / "vae"
    if not vae_folder.exists():
        autoencoder = AutoencoderConfig(
            options.vae_minutes, options.vae_steps, options.vae_batch, options.vae_clips, bfloat16=options.bfloat16
        )
        train_autoencoder(autoencoder, flux, vae_folder)
    write_chunks(options.clips, options.data_seed, flux, text, latents)

    if not (out / "transformer").exists():
        sizes = {"half": 40, "full": 14, "mixed": 20}
        batch = {kind: max(1, round(size * options.batch_scale)) for kind, size in sizes.items()}
        rate = options.rate or (1.0 if options.init is None else 0.15)
        config = TrainingConfig(options.minutes, options.steps, batch, PHASES, rate, hold=0.5)
        torch.manual_seed(config.seed)
        if options.init is None:
            model = build_transformer()
        else:
            model = WanTransformer3DModel.from_pretrained(options.init / "transformer", dtype=torch.float32)
        dtype = torch.bfloat16 if options.bfloat16 else torch.float32
        launch(train, "cpu", 1, config, model, text, latents, out, dtype)
        plot_losses(out / "transformer_log.json", out / "loss.png", "tiny Wan: training loss")

    if not (out / "pipeline").exists():
        trained = WanTransformer3DModel.from_pretrained(out / "transformer", dtype=torch.float32)
        vae = AutoencoderKLWan.from_pretrained(vae_folder, dtype=torch.float32)
        save_pipeline(assemble(trained, vae, flux), out / "pipeline")
    print(f"pipeline: {out / 'pipeline'}")


if __name__ == "__main__":
    main()
