"""What tiny Wan's videos keep at what cost: what they show of their prompts, how they move, likeness to the full run.

    python -m benchmarks.tiny_wan.study [--videos 64] [--minutes 60] [--only WORDS ...]
    python -m benchmarks.tiny_wan.study --table

Prompts and noise of this study alone. Goes on where it stopped: a line of JSON for each batch of 16 videos and method.
Guidance is 5 unless a name says otherwise. Rendered clips of the same prompts stand beside the model's videos: what
they reach is the most that the measures can see. `--table` writes study.md, and a strip of the first prompts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.regime.search import rows_of
from benchmarks.regime.setting import Setting, draw, scheduler_of
from benchmarks.tiny_wan.followed import ASPECTS, followed
from benchmarks.tiny_wan.methods import OWN_SHIFT, STRONG, Method, methods
from benchmarks.tiny_wan.motion import jitter, spectrum_distance
from benchmarks.tiny_wan.scenes import Clip, sample_clip
from benchmarks.tiny_wan.study_page import SHOWN, page, save_strip
from ralu_cache.models.embedded import TINY_WAN
from ralu_cache.quality.likeness import EQUAL_DB, psnr, ssim

OUT, ROWS = Path("benchmarks/results/tiny_wan"), "study.jsonl"
SEED, FIRST_SEED, BATCH = 20261130, 700, 16
STRIP = 3  # videos
Row = dict[str, Any]
Videos = NDArray[np.float32]
"""(B, F, Y, X, 3) in [0, 1]"""


def clips(count: int) -> list[Clip]:
    rng = np.random.default_rng(SEED)
    return [sample_clip(rng) for _ in range(count)]


def made(method: Method) -> str:
    """Eight digits that tell what a name stands for today."""
    return hashlib.sha256(f"{method.setting.made} {method.unipc}".encode()).hexdigest()[:8]


def pipelines() -> dict[bool, Any]:
    """The shipped pipeline, and one with Wan's released sampler."""
    found = {unipc: TINY_WAN.load() for unipc in (False, True)}
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
    found[True].scheduler = scheduler_of(None, Setting("", STRONG, shift=OWN_SHIFT, solver="unipc"))
    return found


def measured(videos: Videos, full: Videos, chosen: Sequence[Clip]) -> dict[str, list[float]]:
    """What each video shows of its prompt and how it moves; likeness to the full run is the mean over its frames."""
    each = [followed(video, clip) for video, clip in zip(videos, chosen, strict=True)]
    pairs = list(zip(videos, full, strict=True))
    found = {aspect: [values[aspect] for values in each] for aspect in ASPECTS}
    found["psnr"] = [round(float(np.minimum(psnr(*pair), EQUAL_DB).mean()), 2) for pair in pairs]
    found["ssim"] = [round(float(np.mean(ssim(*pair))), 4) for pair in pairs]
    found["spectrum"] = [round(spectrum_distance(*pair), 2) for pair in pairs]
    found["jitter"] = [round(1000 * jitter(video), 4) for video in videos]
    return found


def run(
    out: Path, count: int, only: Sequence[str], pipes: Mapping[bool, Any], every: Sequence[Method],
    until: float = math.inf,
) -> None:  # fmt: skip
    """Draws and measures what is missing; the full run of a batch is drawn again for what is compared with it. No batch
    begins after `until` (monotonic)."""
    done = {(row["name"], row["start"], row["made"]) for row in rows_of(out / ROWS)}
    chosen = clips(count)
    for start in tqdm(range(0, count, BATCH), disable=None):
        batch = chosen[start : start + BATCH]
        missing = [
            method for method in every
            if (method.setting.name, start, made(method)) not in done
            and (not only or any(words in method.setting.name for words in only))
        ]  # fmt: skip
        if missing and time.monotonic() < until:
            _run(out, start, batch, pipes, every[0], missing)


def _run(
    out: Path, start: int, batch: Sequence[Clip], pipes: Mapping[bool, Any], first: Method, missing: Sequence[Method]
) -> None:
    prompts, seeds = [clip.prompt for clip in batch], range(FIRST_SEED + start, FIRST_SEED + start + len(batch))
    full = draw(TINY_WAN.name, first.setting, prompts, seeds, pipes[False])
    out.mkdir(parents=True, exist_ok=True)
    with (out / ROWS).open("a") as file:
        for method in tqdm(missing, leave=False, disable=None):
            setting, whole = method.setting, method.setting == first.setting
            drawn = full if whole else draw(TINY_WAN.name, setting, prompts, seeds, pipes[method.unipc])
            row = {"name": setting.name, "kind": method.kind, "scale": setting.scale, "start": start}
            row |= {"made": made(method), "ratio": round(drawn.ratio, 3), "seconds": round(drawn.seconds, 2)}
            file.write(json.dumps(row | measured(drawn.pictures, full.pictures, batch)) + "\n")
            file.flush()


def latest(rows: Sequence[Row], every: Sequence[Method]) -> list[Row]:
    """Those that today's methods made, in their order."""
    of = {method.setting.name: made(method) for method in every}
    places = {name: place for place, name in enumerate(of)}
    mine = [row for row in rows if of.get(row["name"]) == row["made"]]
    return sorted(mine, key=lambda row: (places[row["name"]], row["start"]))


def strip(count: int, names: Sequence[str], pipes: Mapping[bool, Any], every: Sequence[Method]) -> dict[str, Videos]:
    """The first prompts' videos of some methods, by name and cost."""
    chosen = clips(count)
    prompts, seeds = [clip.prompt for clip in chosen], range(FIRST_SEED, FIRST_SEED + count)
    of = {method.setting.name: method for method in every}
    found = {}
    for name in names:
        drawn = draw(TINY_WAN.name, of[name].setting, prompts, seeds, pipes[of[name].unipc])
        found[f"{name}\n{drawn.ratio:.1f}x"] = drawn.pictures
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=60.0, help="no batch of 16 videos begins later")
    parser.add_argument("--only", nargs="+", default=(), help="methods whose names hold one of these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only write the page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pipes, every = pipelines(), [*methods()]
    if not options.table:
        run(options.out, options.videos, options.only, pipes, every, time.monotonic() + 60 * options.minutes)
    rows = latest(rows_of(options.out / ROWS), every)
    text = page(rows, clips(options.videos))
    (options.out / "study.md").write_text(text)
    save_strip(strip(STRIP, SHOWN, pipes, every), [clip.prompt for clip in clips(STRIP)], options.out / "study.png")
    print(text)


if __name__ == "__main__":
    main()
