"""What the command line's help adds to its options: examples, and what a command's exit status means."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "app": (
        "ralu-cache app",
        "ralu-cache app --model black-forest-labs/FLUX.1-dev --offload model --browser",
        "ralu-cache app --results out/sweep --port 8000",
    ),
    "calibrate": ("ralu-cache calibrate --model tiny-sd3 --spatial ralu-3x --out out/curve.json --plot out/fit.png",),
    "demo": (
        "ralu-cache demo",
        "ralu-cache demo --models tiny-flux --quick",
        "ralu-cache demo --methods ralu-8x +seacache:0.2 ralu-8x+forecast:1/2,quantity=clean+guidance=early",
    ),
    "doctor": ("ralu-cache doctor", "ralu-cache doctor --device cuda"),
    "generate": (
        'ralu-cache generate --prompt "a red circle on a blue background" --out circle.png --plot run.png',
        'ralu-cache generate --prompt "a white ring on a red background" --spatial none --temporal seacache:0.3',
        "ralu-cache generate --model black-forest-labs/FLUX.1-dev --offload model --height 1024 --width 1024 "
        '--prompt "a red fox in the snow" --report run.json',
    ),
    "info": ("ralu-cache info",),
    "recommend": (
        "ralu-cache recommend --results out/sweep/results.jsonl --speedup 4x",
        "ralu-cache recommend --results out/sweep/results.jsonl --min-quality psnr=25",
    ),
    "tune": (
        "ralu-cache tune --prompts prompts.txt --true-cfg-scale 6 --steps 28 --minutes 15 --quality probability",
        "ralu-cache tune --model FOLDER --prompts prompts.txt --cost flops --out profile.json",
    ),
    "sweep": (
        "ralu-cache sweep --spatial none ralu-8x ralu-12x --plain-steps 8 5 --true-cfg-scale 6 --out out/sweep",
        "ralu-cache sweep --spatial none ralu-4x --temporal none seacache --thresholds 0.3 0.5",
    ),
}
"""By command; a test reads them all as the command line would."""

EXIT = """exit status:
  0    done
  1    doctor: a check failed
  2    a wrong option, or something that can't be done; the last line says which
  130  interrupted (Ctrl+C)

completion, for example of bash (or zsh, fish, tcsh, powershell):
  ralu-cache --print-completion bash > ~/.local/share/bash-completion/completions/ralu-cache"""


def add_examples(parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Below the options of each command, and below those of all."""
    for name, command in commands.items():
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = "\n  ".join(["examples:", *EXAMPLES.get(name, ())])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXIT
