"""The options of `ralu-cache calibrate`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ralu_cache.sweep.options import add_call, add_size


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_call(parser)
    add("--prompts", metavar="FILE.txt", help="one a line, a handful will do (the demo's)")
    add("--seeds", nargs="+", type=int, default=[0], help="every prompt runs with each (0)")
    add("--spatial", default="none", metavar="NAME", help="the plan whose stages are fitted; default: %(default)s")
    add("--degree", type=int, default=4, help="of the polynomials, at most; default: %(default)s")
    add("--steps", type=int, help="num_inference_steps, best those you sample with; presets bring their own")
    add_size(parser)
    where = parser.add_mutually_exclusive_group().add_argument
    where("--out", type=Path, default=Path("out/teacache.json"), metavar="FILE.json", help="default: %(default)s")
    where("--beside", action="store_true", help="put it into the model's folder, where temporal='teacache' finds it")
    add("--plot", type=Path, metavar="FILE.png", help="draw the pairs and the fitted curves")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from ralu_cache.tune.calibration.command import run

    run(args)
