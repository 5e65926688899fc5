"""The settings that stack best on RALU "4x", timed in many interleaved rounds: are they as fast as their FLOPs say?

    python -m benchmarks.temporal_stacked [--prompts 16] [--rounds 14] [--out benchmarks/results/temporal]

PSNR and SSIM to the uncached run of the same plan, unguided, 128 pixels; speed is the ratio of wall-clock to it within
a round (median and quartiles over the rounds, batch 4, to the latents). Writes stacked.json and stacked.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from benchmarks.lab import Lab, compare
from ralu_cache import accelerate
from ralu_cache.methods import parse_method

METHODS = (
    "ralu-4x+taylorseer:2,first=1",
    "ralu-4x+taylorseer:5/2/2,first=1,compute_stage_end=false",
    "ralu-4x+seacache:0.7/0.5/0.4,compute_stage_end=false",
    "ralu-4x+teacache:0.4",
)
STEPS, BATCH = 28, 4


def speeds(lab: Lab, rounds: int) -> list[list[float]]:
    """Per method, the ratio of the uncached run's time to its own in each round; one round of warm-up excluded."""
    ratios: list[list[float]] = [[] for _ in METHODS]
    for turn in range(rounds + 1):
        times = []
        for method in ("ralu-4x", *METHODS):
            parts = parse_method(method)
            with accelerate(lab.pipe, spatial=parts.spatial, temporal=parts.temporal):
                start = time.perf_counter()
                lab.latents(STEPS, BATCH)
                times.append(time.perf_counter() - start)
        for slot, seconds in zip(ratios, times[1:], strict=True):
            if turn:
                slot.append(times[0] / seconds)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/temporal"))
    options = parser.parse_args()
    lab = Lab(options.prompts)
    rows, lines = (
        [],
        ["| method | PSNR to uncached | SSIM | FLOPs | wall-clock (quartiles) |", "|---|---:|---:|---:|---:|"],
    )
    timed = speeds(lab, options.rounds)
    reference, uncached = lab.accelerated(STEPS, "unguided", "ralu-4x")
    for method, ratios in zip(METHODS, timed, strict=True):
        parts = parse_method(method)
        images, report = lab.accelerated(STEPS, "unguided", parts.spatial, parts.temporal)
        psnr, structure = compare(images, reference)
        low, middle, high = statistics.quantiles(ratios, n=4)
        row = {
            "method": method, "psnr": float(psnr.mean()), "psnr_deviation": float(psnr.std()), "ssim": structure,
            "flop_ratio": uncached.flops / report.flops, "wall_ratio": middle, "wall_quartiles": (low, high),
        }  # fmt: skip
        rows.append(row)
        lines.append(
            f"| `{method}` | {row['psnr']:.1f} ± {row['psnr_deviation']:.1f} dB | {structure:.3f} "
            f"| {row['flop_ratio']:.2f}x | {middle:.2f}x ({low:.2f} to {high:.2f}) |"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    setting = {"prompts": lab.prompts, "seeds": list(range(len(lab.prompts))), "rounds": options.rounds, "batch": BATCH}
    (options.out / "stacked.json").write_text(json.dumps({**setting, "rows": rows}, indent=1) + "\n")
    head = (
        f'# Caching on RALU "4x", unguided, {len(lab.prompts)} prompts, 128x128 pixels\n\nRelative to the uncached run '
        f"of the same plan; {options.rounds} interleaved rounds of batch {BATCH}, two CPU threads; ± is the standard "
        "deviation over the pictures.\nMade by `python -m benchmarks.temporal_stacked`.\n\n"
    )
    (options.out / "stacked.md").write_text(head + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
