"""What the regime's studies are asked on the command line alike."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.regime.pictures import SHELF


def read(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, out: Path) -> argparse.Namespace:
    """Adds `--prompts`, `--out`, `--shelf` and `--threads`, reads all, sets the threads and makes the folder."""
    parser.add_argument("--prompts", type=int, default=32, help="at least 2")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--shelf", type=Path, default=SHELF)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.prompts < 2:
        parser.error(f"--prompts must be at least 2, got {options.prompts}")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    return options
