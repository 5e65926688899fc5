"""The options of `ralu-cache sweep` and `recommend`, and what all commands ask; heavy imports wait until they run."""

from __future__ import annotations

import argparse
from pathlib import Path

EMBEDDED = ("tiny-flux", "tiny-sd3", "tiny-wan", "tiny-flux-dev")


def positive(text: str) -> int:
    """A positive number for argparse, which names the option in its own error."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def add_machine(parser: argparse.ArgumentParser, offload: bool = True) -> None:
    """Where and how a model runs."""
    add = parser.add_argument
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU, float32 on the CPU")
    add("--device", help="default: cuda if there is one, else cpu")
    if offload:
        add("--offload", choices=("none", "model", "sequential"), default="none", help="keep idle weights on the CPU")


def add_size(parser: argparse.ArgumentParser) -> None:
    """Of what is drawn."""
    parser.add_argument("--height", type=positive, help="pixels")
    parser.add_argument("--width", type=positive, help="pixels")


def add_call(parser: argparse.ArgumentParser, offload: bool = True) -> None:
    """The model, what every one of its calls is given, and where it runs."""
    add, others = parser.add_argument, ", ".join(EMBEDDED[1:])
    add("--model", default=EMBEDDED[0], metavar="ID_OR_FOLDER", help=f"or {others}; default: {EMBEDDED[0]}")
    add("--negative-prompt", help="for every prompt")
    add("--true-cfg-scale", type=float, help="guidance with a negative prompt")
    add("--guidance-scale", type=float, help="of the pipeline")
    add("--max-sequence-length", type=positive, help="text tokens")
    add_machine(parser, offload)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--grid", type=Path, metavar="FILE.yaml", help="options by the names below; those given here come on top")
    add("--spatial", nargs="+", metavar="NAME", help="none, ralu-4x, ...")
    add("--temporal", nargs="+", metavar="NAME[:SETTINGS]", help="none, teacache, seacache:0.3, ...")
    add("--guidance", nargs="+", metavar="early[:T]", help="in which steps to guide: none, early, early:0.65")
    add("--thresholds", nargs="+", type=float, help="main values for the policies that are given without one")
    add("--methods", nargs="+", metavar="METHOD", help="further ones: ralu-4x+seacache:0.3+guidance=early, steps:12")
    add("--steps", nargs="+", type=int, help="asked of every setting; the most are the full run's (50)")
    add("--plain-steps", nargs="+", type=int, help="the stock pipeline with fewer steps, to compare with")
    add("--sizes", nargs="+", metavar="HEIGHTxWIDTH", help="pixels (128x128)")
    add("--prompts", metavar="FILE.txt", help="one a line (the demo's six)")
    add("--seeds", nargs="+", type=int, help="every prompt runs with each (0)")
    add("--batch", type=int, help="pictures in one call (4)")
    add("--rounds", type=int, default=3, help="first batches on which every setting is timed (%(default)s)")
    add("--seconds", type=float, help="begin no new call after so long; the same command goes on later")
    add("--retry-errors", action="store_true", help="run again what failed before")
    add_executor(parser)
    add_call(parser, offload=False)
    add("--out", type=Path, default=Path("out/sweep"), metavar="FOLDER", help="default: %(default)s")
    parser.set_defaults(run=_run)


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Where the work is done; shared with `tune`."""
    text = "ray: one worker for each GPU or CPU of a cluster"
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help=text)
    parser.add_argument("--workers", type=positive, help="of Ray, if not one for each")


def _run(args: argparse.Namespace) -> None:
    from ralu_cache.sweep.command import sweep

    print(f"results, tables, plots and index.html are in {sweep(args).parent}")


def add_recommend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, required=True, metavar="FILE.jsonl", help="of ralu-cache sweep")
    wish = parser.add_mutually_exclusive_group(required=True)
    wish.add_argument("--min-quality", action="append", metavar="METRIC=VALUE", help="the fastest that keeps it (them)")
    wish.add_argument("--speedup", type=_ratio, help="the best at this speed-up or more, such as 4 or 4x")
    parser.add_argument("--metric", help="what --speedup judges by (attribute accuracy, else PSNR)")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="pixels, needed where the results hold several sizes")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="add it to a file of recommendations")
    parser.set_defaults(run=_recommend)


def _recommend(args: argparse.Namespace) -> None:
    from ralu_cache.sweep.recommend import run

    run(args)


def _ratio(text: str) -> float:
    return float(text.removesuffix("x"))
