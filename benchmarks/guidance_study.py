"""Guidance left out late, with stages and without: what is drawn at what cost, where few steps break pictures.

    python -m benchmarks.guidance_study --model tiny-flux --regime strong [--pictures 256] [--out DIR]
    python -m benchmarks.guidance_study --table [--out DIR]

Regime "strong": all methods at guidance 6; "best": each at the scale that serves it best. Plain steps at their best
shift and interval stand beside ours. Prompts and seeds are of this study alone: no setting was chosen on them. Goes on
where it stopped: a line of JSON for each batch of 16 pictures and setting. `--table` writes the tables and one strip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import RALU, Guidance, accelerate
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.attributes import AttributeAccuracy, SceneAccuracy
from ralu_cache.quality.likeness import EQUAL_DB, psnr
from ralu_cache.report.figures import save_grid

OUT = Path("benchmarks/results/guidance")
BATCH = 16
SCALE = {"tiny-flux": "true_cfg_scale", "tiny-sd3": "guidance_scale"}
SHIFT = {"tiny-flux": 2.5, "tiny-sd3": 3.0}  # of plain steps; tiny-flux's best of those tried, tiny-sd3's own
STRONG = 6.0


@dataclass(frozen=True)
class Setting:
    """plain: steps without a plan, at the plain steps' shift; the full run has the model's own."""

    name: str
    scale: float
    spatial: str | RALU | None = None
    guidance: str | Guidance | None = None
    plain: int | None = None


def regime(name: str) -> list[Setting]:
    """The settings of a regime, the full run first."""
    if name == "strong":
        return [
            Setting("full", STRONG),
            Setting("plain 7", STRONG, plain=7),
            Setting("plain 5", STRONG, plain=5),
            Setting("plain 8, guided in 4", STRONG, guidance="early:0.28", plain=8),
            Setting("plain 6, guided in 3", STRONG, guidance="early:0.28", plain=6),
            Setting("ralu-12x", STRONG, "ralu-12x"),
            Setting("ralu-15x", STRONG, "ralu-15x"),
            Setting("ralu-15x, held", STRONG, "ralu-15x", Guidance(end=0.65, held="scaled")),
            Setting("ralu-18x", STRONG, "ralu-18x"),
        ]
    return [
        Setting("full", 3.0),
        Setting("plain 5, guided in 3", 4.5, guidance="early:0.37", plain=5),
        Setting("plain 4, guided in 2", 4.5, guidance="early:0.28", plain=4),
        Setting("ralu-15x", 3.0, "ralu-15x"),
        Setting("ralu-22x", 3.0, "ralu-22x"),
        Setting("4 to t = 0.7, 2 fine", 3.0, RALU(steps=(4, 2), ends=(0.7, 1.0), shifts=(3.3, 1.4), z=2.2), "early"),
    ]


def draw(
    pipe: Any, model: str, setting: Setting, prompts: Sequence[str], seeds: Sequence[int]
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """(B, Y, X, 3) in [0, 1], and what they cost."""
    scheduler = pipe.scheduler
    if setting.plain:
        pipe.scheduler = type(scheduler).from_config(scheduler.config, shift=SHIFT[model], use_dynamic_shifting=False)
    guidance = Guidance() if setting.guidance is None and setting.spatial is None else setting.guidance
    try:
        with accelerate(pipe, spatial=setting.spatial, guidance=guidance) as handle:
            begun = time.perf_counter()
            images = pipe(
                list(prompts), negative_prompt=[""] * len(prompts), height=128, width=128, max_sequence_length=16,
                num_inference_steps=setting.plain or 50, output_type="np",
                generator=[torch.Generator().manual_seed(seed) for seed in seeds], **{SCALE[model]: setting.scale},
            ).images  # fmt: skip
            assert handle.report is not None
            return images, {"flops": handle.report.flops, "seconds": time.perf_counter() - begun}
    finally:
        pipe.scheduler = scheduler


def gradient(images: NDArray[np.float32]) -> list[float]:
    """Mean absolute difference of neighbours, of each picture: how sharp it is."""
    return [float((np.abs(np.diff(x, axis=0)).mean() + np.abs(np.diff(x, axis=1)).mean()) / 2) for x in images]


def run(model: str, name: str, pictures: int, out: Path) -> None:
    pipe = EMBEDDED[model].load()
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(20261126)
    prompts = [sample_scene(rng).prompt for _ in range(pictures)]
    path = out / f"{model}_{name}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    done = {(row["start"], row["setting"]) for row in rows_of(path)}
    for start in range(0, pictures, BATCH):
        chosen, seeds = prompts[start : start + BATCH], range(50_000 + start, 50_000 + start + BATCH)
        full: NDArray[np.float32] | None = None
        kept = out / "pictures" / f"{model}_{name}_{start}.npz"
        shown: dict[str, NDArray[np.float32]] = {}
        for setting in regime(name):
            if (start, setting.name) in done and not (setting.name == "full" and full is None):
                continue
            if setting.name == "full" and kept.exists():
                full = np.load(kept)["full"].astype(np.float32) / 255
                continue
            images, cost = draw(pipe, model, setting, chosen, list(seeds))
            if setting.name == "full":
                full = images
                kept.parent.mkdir(exist_ok=True)
                np.savez_compressed(kept, full=(images * 255).round().astype(np.uint8))
            assert full is not None
            shown[setting.name] = images[:8]
            row = {
                "start": start, "setting": setting.name, "scale": setting.scale, **cost,
                "attributes": AttributeAccuracy()(images, None, chosen),
                "scenes": SceneAccuracy()(images, None, chosen),
                "gradient": gradient(images),
                "psnr": [min(value, EQUAL_DB) for value in psnr(images, full)],
            }  # fmt: skip
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if start == 0 and len(shown) == len(regime(name)):
            save_grid(shown, [f"seed {seed}" for seed in list(seeds)[:8]], out / f"{model}_{name}.png")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(out: Path) -> str:
    """Means over the pictures that all settings of a regime have; differences to the full run are paired."""
    lines = []
    for path in sorted(out.glob("tiny-*_*.jsonl")):
        rows = rows_of(path)
        by: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            by.setdefault(row["setting"], {})[row["start"]] = row
        common = sorted(set.intersection(*(set(parts) for parts in by.values())))
        if not common:
            continue
        lines += [
            f"## {path.stem}: {len(common) * BATCH} pictures", "",
            "| setting | scale | fewer FLOPs | attributes | less than full | scenes | gradient | PSNR to full |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        whole = by["full"]
        flops = sum(whole[start]["flops"] for start in common)
        for name, parts in by.items():
            found = {
                key: np.concatenate([parts[start][key] for start in common])
                for key in ("attributes", "scenes", "gradient", "psnr")
            }
            paired = np.concatenate([whole[start]["attributes"] for start in common]) - found["attributes"]
            error = paired.std(ddof=1) / len(paired) ** 0.5
            ratio = flops / sum(parts[start]["flops"] for start in common)
            lost = "" if name == "full" else f"{paired.mean():+.1f} ± {error:.1f}"
            psnr = "" if name == "full" else f"{found['psnr'].mean():.1f}"
            lines.append(
                f"| {name} | {parts[common[0]]['scale']:g} | {ratio:.1f}x | {found['attributes'].mean():.1f} | {lost} "
                f"| {found['scenes'].mean():.0f} | {found['gradient'].mean():.4f} | {psnr} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SCALE), default="tiny-flux")
    parser.add_argument("--regime", choices=["strong", "best"], default="strong")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.table:
        text = table(options.out)
        (options.out / "table.md").write_text(text)
        print(text)
        return
    run(options.model, options.regime, options.pictures, options.out)


if __name__ == "__main__":
    main()
