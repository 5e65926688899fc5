"""One picture by the released Qwen-Image, accelerated, and the report of what that saved.

    python -m benchmarks.examples.qwen_image --prompt "A red fox in the snow" --spatial ralu --temporal seacache:0.3

Loads Qwen/Qwen-Image (20 billion parameters and a text encoder of 7 billion, together 58 GB in bfloat16) on a CUDA
card; with `--offload model` the larger of the two has to fit. It has been run with small random weights only.

Spatial stages want sides that are multiples of 32: of the sizes that its authors recommend, 1664x928 and 928x1664 are;
in place of 1328x1328 take 1344x1344. The edit checkpoints need the same one line, `accelerate(pipe, "ralu")`, on a
`QwenImageEditPipeline` or `QwenImageEditPlusPipeline`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ralu_cache.generate import Request, generate


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Draws, saves, prints the report. Returns the paths of the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="A coffee shop with a chalkboard that reads 'Qwen Coffee, $2 a cup'")
    parser.add_argument("--steps", type=int, default=50, help="a spatial preset brings its own number")
    parser.add_argument("--spatial", default="ralu", help="none, ralu, ralu-4x, ralu-5x, ralu-7x")
    parser.add_argument("--temporal", default="none", help="none, seacache:0.3, taylorseer:3, adaptive, toca, ...")
    parser.add_argument("--true-cfg-scale", type=float, default=4.0, help="1 for no guidance: half the calls")
    parser.add_argument("--height", type=int, default=928)
    parser.add_argument("--width", type=int, default=1664)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="Qwen/Qwen-Image", help="name or folder of a checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--offload", choices=("none", "model", "sequential"), default="none")
    parser.add_argument("--out", default="out/qwen_image.png")
    given = vars(parser.parse_args(arguments))
    return generate(Request(**{**given, "prompt": [given["prompt"]], "negative_prompt": " "}))


if __name__ == "__main__":
    main()
