"""The options of `ralu-cache app`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ralu_cache.sweep.options import EMBEDDED, add_machine, positive


def add_app(parser: argparse.ArgumentParser, prepare: Callable[[], None]) -> None:
    """prepare: called before anything is loaded."""
    add = parser.add_argument
    add("--model", default=EMBEDDED[0], metavar="ID_OR_FOLDER",
        help=f"shown first, beside the embedded {', '.join(EMBEDDED)}; default: %(default)s")  # fmt: skip
    add_machine(parser)
    add("--results", type=Path, nargs="+", default=[Path("out")], metavar="FOLDER",
        help="where to look for the results of sweeps and of tuning (out)")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen at; default: %(default)s, this machine alone")
    add("--port", type=positive, default=7860, help="the next free one is used if it is taken; default: %(default)s")
    add("--share", action="store_true", help="a public link through Gradio's servers")
    add("--browser", action="store_true", help="open it")
    parser.set_defaults(run=partial(_run, prepare))


def _run(prepare: Callable[[], None], args: argparse.Namespace) -> None:
    prepare()
    from ralu_cache.app.serve import serve
    from ralu_cache.generate import Request

    request = Request(args.model, [""], dtype=args.dtype, device=args.device, offload=args.offload)
    serve(request, args.host, args.port, args.results, args.share, args.browser)
