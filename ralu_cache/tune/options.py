"""The options of `ralu-cache tune`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ralu_cache.sweep.options import add_call, add_executor, add_size, positive


def add_tune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_call(parser)
    add("--prompts", type=Path, required=True, metavar="FILE.txt", help="one a line, at least 2, such as will be drawn")
    add("--steps", type=positive, help="num_inference_steps of the call in full (the pipeline's own)")
    add_size(parser)
    add("--num-frames", type=positive, help="of a video")
    add("--minutes", type=float, default=15.0, help="of this run; the same command goes on later; default: %(default)s")
    add("--target", choices=("speed", "loss"), default="speed", help="what is taken where nobody says how fast")
    add(
        "--quality", default="perceptual", metavar="NAME",
        help="perceptual, psnr, clip, image-reward, attributes, probability, package.module:function (%(default)s)",
    )  # fmt: skip
    add("--cost", choices=("seconds", "flops"), default="seconds", help="what is minimised beside the loss")
    add("--scales", nargs=2, type=float, metavar=("LOW", "HIGH"), help="guidance scales that may be taken too")
    add("--batch", type=positive, default=1, help="prompts in one call; default: %(default)s")
    add("--seed", type=int, default=0, help="of the first prompt; the next ones count up from it")
    add("--sampler", choices=("tpe", "nsga2"), default="tpe")
    add("--trials", type=positive, help="stop after so many, if the time is not over before")
    add_executor(parser)
    add("--study", type=Path, default=Path("out/tune"), metavar="FOLDER", help="study and page; default: %(default)s")
    add("--storage", metavar="URL", help="of a server, or FILE.log for a journal, in place of the study's SQLite file")
    add("--out", type=Path, metavar="FILE.json", help="the profile (beside the model, else in the user's cache folder)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from ralu_cache.tune.command import run

    run(args)
