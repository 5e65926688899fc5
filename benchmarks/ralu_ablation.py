"""Which of noise, start, lift, regions, position ids and plan costs what: RALU against the full run of the same seed.

    python -m benchmarks.ralu_ablation [--prompts 16] [--presets ralu-4x ralu-7x] [--out benchmarks/results/ralu]

For each preset, the library's default and the published choices, then one change at a time from the default. The
metrics are PSNR (mean over images, dB) and SSIM of the decoded 128-pixel images against the 50-step full run of the
same prompt and seed: unguided, and for the main variants guided (true_cfg_scale 3.0) too. Writes ablation.json,
ablation.md and strips of images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.lab import GUIDANCE, Lab, compare, strip
from ralu_cache import RALU
from ralu_cache.report.table import Table

STEPS = 50
SCORERS = (
    "canny", "sobel", "latent-gradient", "step-variance", "step-variance-moving", "velocity-variance",
    "text-attention", "even",
)  # fmt: skip
GUIDED = ("default", "published choices", "noise: paper", "start: subsampled", "plan: published")
STRIP = ("full run", "default", "noise: paper", "published choices")


@dataclass(frozen=True)
class Row:
    """One variant of one preset. PSNR in dB with its standard error over the images."""

    preset: str
    variant: str
    guidance: str
    psnr: float
    psnr_error: float
    ssim: float
    flop_ratio: float


def variants(preset: str) -> Iterator[tuple[str, RALU]]:
    """The default, the published choices, and one change at a time from the default."""
    default = RALU.preset(preset)
    yield "default", default
    yield "published choices", RALU.paper(preset)
    yield "noise: paper", replace(default, noise="paper", lift="nearest")
    yield "start: subsampled", replace(default, start="subsampled")
    for lift in ("nearest", "bicubic", "pixel"):
        yield f"lift: {lift}", replace(default, lift=lift)
    for regions in SCORERS:
        yield f"regions: {regions}", replace(default, regions=regions)
    for frame in ("own", "fine"):
        for anchor in ("center", "corner"):
            yield f"ids: {frame} frame, {anchor}", replace(default, frame=frame, anchor=anchor)
    published = RALU.paper(preset)
    yield "plan: published", replace(default, ends=published.ends, shifts=published.shifts, z=published.z)
    yield "plan: NT-DM levels for these ends", replace(default, shifts="nt-dm")
    for z in (1.5, 2.0, 3.0, 4.5, 6.5):
        yield f"plan: Z = {z}", replace(default, z=z)
    for ends in ((0.05, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.45)):
        yield f"plan: ends {ends[0]}, {ends[1]}", replace(default, ends=(*ends, 1.0))


def table(rows: list[Row]) -> str:
    """Markdown: one line a variant, PSNR / SSIM for each guidance."""
    lines = []
    for preset in dict.fromkeys(row.preset for row in rows):
        mine = [row for row in rows if row.preset == preset]
        cells = []
        for variant in dict.fromkeys(row.variant for row in mine):
            found = {row.guidance: row for row in mine if row.variant == variant}
            qualities = [
                f"{r.psnr:.2f} ± {r.psnr_error:.2f} dB, {r.ssim:.3f}" if (r := found.get(g)) else "" for g in GUIDANCE
            ]
            ratio = next(iter(found.values())).flop_ratio
            cells.append([variant, f"{ratio:.2f}x fewer", *qualities])
        titles = ("variant", "FLOPs", *(f"{g} PSNR, SSIM" for g in GUIDANCE))
        lines += [f"## {preset}", "", Table(titles, cells, left=range(len(titles))).markdown(), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--presets", nargs="+", default=["ralu-4x", "ralu-7x"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ralu"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lab, rows = Lab(options.prompts), []
    work = [(p, name, plan) for p in options.presets for name, plan in variants(p)]
    with tqdm(total=sum(g == "unguided" or name in GUIDED for g in GUIDANCE for _, name, _ in work)) as bar:
        for guidance in GUIDANCE:
            reference = lab.images(STEPS, guidance)
            strips = {preset: {"full run": reference} for preset in options.presets}
            for preset, name, plan in work:
                if guidance == "guided" and name not in GUIDED:
                    continue
                images, report = lab.accelerated(STEPS, guidance, spatial=plan)
                psnr, structure = compare(images, reference)
                error = float(psnr.std() / len(psnr) ** 0.5)
                rows.append(Row(preset, name, guidance, float(psnr.mean()), error, structure, report.flop_ratio))
                if name in STRIP:
                    strips[preset][name] = images
                bar.update()
            for preset, images_of in strips.items():
                strip(images_of, options.out / f"{preset}-{guidance}.png")
    setting = {
        "prompts": lab.prompts,
        "seeds": "0, 1, ... in the order of the prompts",
        "full_steps": STEPS,
        "size": 128,
    }
    (options.out / "ablation.json").write_text(
        json.dumps({**setting, "rows": [asdict(r) for r in rows]}, indent=1) + "\n"
    )
    head = (
        f"# RALU ablation on tiny-flux\n\n{len(lab.prompts)} prompts, 128x128 pixels, PSNR and SSIM to "
        f"the {STEPS}-step full run of the same seed.\nEach line changes one thing from the default. "
        "Made by `python -m benchmarks.ralu_ablation`.\n\n"
    )
    (options.out / "ablation.md").write_text(head + table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
