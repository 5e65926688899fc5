"""The command line, `ralu-cache COMMAND`. Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ralu_cache.app.options import add_app
from ralu_cache.examples import add_examples
from ralu_cache.sweep.options import EMBEDDED, add_call, add_machine, add_recommend, add_size, add_sweep, positive
from ralu_cache.tune.calibration.options import add_calibrate
from ralu_cache.tune.options import add_tune

DEMO_MODELS = (*EMBEDDED[:3], "tiny-wan-unipc")
METHODS = "SPATIAL, +TEMPORAL, +solver=..., +guidance=..., or several such as ralu-4x+forecast:2+solver=multistep"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 if a check of doctor failed, 2 after one line that says what went wrong, 130 if
    interrupted.
    """
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int | None] = args.run
    try:
        status = run(args)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.traceback:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"ralu-cache: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ralu-cache: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ralu-cache", description="Faster diffusers pipelines, training-free.")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(
        commands.add_parser("demo", help="sample the embedded models in full, with RALU and with caching, and compare")
    )
    _add_generate(commands.add_parser("generate", help="accelerate any local or hub checkpoint and draw with it"))
    add_sweep(commands.add_parser("sweep", help="speed and quality of many settings, resumable"))
    add_recommend(commands.add_parser("recommend", help="the best setting of a sweep, and the line that uses it"))
    add_tune(commands.add_parser("tune", help="find the best settings for your model, size and steps; resumable"))
    add_calibrate(commands.add_parser("calibrate", help="fit TeaCache's polynomial to a checkpoint, stage by stage"))
    add_app(commands.add_parser("app", help="compare full and accelerated pictures in the browser"), _silence_loading)
    info = commands.add_parser(
        "info", help="versions, devices, supported pipelines, presets, temporal policies, attention backends"
    )
    info.add_argument(
        "model", nargs="?", metavar="PATH",
        help="what works with this pipeline; where no adapter knows it, two steps are drawn to find its blocks",
    )  # fmt: skip
    add_size(info)
    add_machine(info, offload=False)
    info.set_defaults(run=_info)
    doctor = commands.add_parser("doctor", help="what a bug report needs, and a test of half a minute that all works")
    doctor.add_argument("--device", help="of the test; default: cuda if there is one, else cpu")
    doctor.set_defaults(run=_doctor)
    add_examples(parser, commands.choices)
    _complete(parser, commands.choices)
    return parser


def _complete(parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Adds what prints a shell's completion; options that name files and folders are completed with those."""
    import shtab

    shtab.add_argument_to(parser, "--print-completion", help="a script for the shell's completion")
    kinds = {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY}
    for command in commands.values():
        for action in command._actions:
            for word, kind in kinds.items():
                if word in str(action.metavar):
                    action.complete = kind  # type: ignore[attr-defined]


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="out/demo", metavar="FOLDER", help="default: %(default)s; a folder a model in it"
    )
    parser.add_argument("--models", nargs="+", choices=DEMO_MODELS, default=DEMO_MODELS, help="all, if not given")
    parser.add_argument("--quick", action="store_true", help="two prompts, three methods, one round")
    parser.add_argument("--steps", type=positive, help="steps of the full run (50)")
    parser.add_argument("--size", type=positive, help="pixels of a side (128; 64 of tiny-wan)")
    parser.add_argument("--seeds", type=int, nargs="+", help="one batch of pictures or videos per seed (0)")
    parser.add_argument("--repeats", type=positive, help="rounds of the interleaved timing (3; 2 of tiny-wan)")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help=f"{METHODS} (the models' presets, some with caching)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (cpu)")
    parser.set_defaults(run=_demo)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_call(parser)
    add("--prompt", action="append", required=True, help="repeat it for a batch")
    add("--spatial", help="ralu, ralu-4x, ..., or none (ralu, unless what follows chooses)")
    add("--speedup", metavar="4x", help="the best setting that is at least so fast, as tuned or by the family's plan")
    add("--max-loss", type=float, help="the fastest tuned setting that loses at most so much")
    add("--profile", metavar="FILE.json", help="of ralu-cache tune; alone: the setting that it chose")
    add(
        "--temporal", default="none", metavar="NAME[:VALUE]",
        help="seacache:0.3, forecast:3, ...; of two denoisers 'high=seacache:0.3;low=taylorseer:3' (%(default)s)",
    )
    add(
        "--guidance", default="none", metavar="early[:T]", help="guide only in the stages that aren't fine, or until T"
    )
    add("--solver", default="none", metavar="NAME", help="multistep, multistep:3 or dpm in place of Euler steps")
    add_size(parser)
    add("--steps", type=positive, help="num_inference_steps; presets bring their own")
    add("--seed", type=int, default=0, help="of the first picture; the next ones count up from it")
    add("--num-images", type=positive, default=1, help="pictures or videos per prompt")
    add("--num-frames", type=positive, help="of a video")
    add("--frames-per-second", type=positive, help="of the GIF that a video becomes (16; 8 of tiny-wan)")
    add("--out", default="out/generate", metavar="FILE_OR_FOLDER", help="default: %(default)s")
    add("--report", metavar="FILE.json", help="save what the run did")
    add("--plot", metavar="FILE.png", help="draw the run's timeline, caching and regions")
    parser.set_defaults(run=_generate)


def _demo(args: argparse.Namespace) -> None:
    _silence_loading()
    from dataclasses import replace

    from ralu_cache.demo import run_demo
    from ralu_cache.demo_plans import DEMOS, quick
    from ralu_cache.report.table import show
    from ralu_cache.sweep.comparison import caption, comparison_table

    options = {name: getattr(args, name) for name in ("steps", "size", "seeds", "repeats", "methods", "device")}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value is not None
    }
    for plan in DEMOS:
        if plan.name in args.models:
            out = Path(args.out) / plan.name
            summary = run_demo(replace(quick(plan) if args.quick else plan, **given), out)
            show(comparison_table(summary))
            print(f"\n{caption(summary)}\n")
            print(f"pictures, timeline and report.json are in {out}", flush=True)


def _generate(args: argparse.Namespace) -> None:
    _silence_loading()
    from ralu_cache.generate import Request, generate

    fields = vars(args).keys() & Request.__dataclass_fields__.keys()
    generate(Request(**{name: getattr(args, name) for name in fields}))


def _info(args: argparse.Namespace) -> None:
    _silence_loading()
    if args.model is None:
        from ralu_cache.info import describe

        print(describe())
        return
    from ralu_cache.generate import Request
    from ralu_cache.info import describe_model

    given = {name: getattr(args, name) for name in ("model", "height", "width", "device", "dtype")}
    print(describe_model(Request(prompt=["a red fox"], steps=2, **given)))


def _doctor(args: argparse.Namespace) -> int:
    _silence_loading()
    from ralu_cache.doctor import diagnose

    return 1 if diagnose(args.device) else 0


def _silence_loading() -> None:
    """Libraries chatter while they load: progress bars, and advice to install a torchvision that nothing here needs."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
