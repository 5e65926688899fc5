"""How much of a residual's trend should go on behind a transition? `ralu_cache.history.residuals.DAMPING`, tried out.

    python -m benchmarks.trend_damping [--prompts 24] [--guidance unguided] [--out benchmarks/results/composition]

The embedded model, prompts of its own, on which the value was chosen; the composition study judges it on others.
Image i has seed i. PSNR to the uncached run of the same plan,
and picture by picture its difference to the same policy without a trend (0, that is "reset"). Nothing is timed. Writes
damping.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

from benchmarks.composition import seer
from benchmarks.lab import GUIDANCE, Lab, compare
from ralu_cache.report.table import Table
from ralu_cache.sweep.methods import parse_method
from ralu_cache.temporal import forecast

DAMPINGS = (0.0, 0.2, 0.4, 0.55, 0.7, 0.85)
METHODS = (
    "ralu-4x+taylorseer:2", seer("5/2/2", "trend"), seer("1/2/1", "trend"), seer("1/1/2", "trend"),
    "ralu-4x+teacache:0.4", seer("2/3/2", "trend", plan="ralu-7x"),
)  # fmt: skip
SEED = 77  # of the prompts


def rows_of(lab: Lab, name: str, guidance: str) -> list[tuple[str, ...]]:
    """A row of the table for each damping."""
    method = parse_method(name)
    uncached, _ = lab.accelerated(50, guidance, method.spatial, None, method.guidance)
    rows: list[tuple[str, ...]] = []
    without = None
    for damping in DAMPINGS:
        with patch.object(forecast, "DAMPING", damping):
            images, _ = lab.accelerated(50, guidance, method.spatial, method.temporal, method.guidance)
        psnr = compare(images, uncached)[0].clamp_max(60.0)
        without = psnr if without is None else without
        gain = psnr - without
        told = f"{gain.mean():+.1f} ± {gain.std() / len(gain) ** 0.5:.1f} dB", f"{int((gain < 0).sum())} of {len(gain)}"
        rows.append((f"`{name}`", f"{damping:g}", f"{psnr.mean():.1f} dB", *(told if damping else ("", ""))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--guidance", choices=GUIDANCE, default="unguided")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/composition"))
    options = parser.parse_args()
    lab = Lab(options.prompts, SEED)
    lines = [
        "# How much of a trend goes on behind a transition", "",
        f"{options.prompts} pictures, {options.guidance}, PSNR to the uncached run of the same plan (60 dB at most). "
        "Made by `python -m benchmarks.trend_damping`; ± is the standard error of the paired differences.", "",
    ]  # fmt: skip
    rows = [row for name in METHODS for row in rows_of(lab, name, options.guidance)]
    lines.append(Table(("method", "damping", "PSNR", "gain over none", "worse"), rows).markdown())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "damping.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
