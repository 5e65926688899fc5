"""A fabricated sweep: settings, pictures and figures that look plausible, and fail where they are told to."""

import json
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from ralu_cache.quality.base import MetricInfo
from ralu_cache.sweep.records import Batch, Header, Record, Results, Setting, append, write_header

SPEEDS = {
    "none": (1.0, 50.0), "steps:28": (1.8, 36.0), "steps:18": (2.8, 29.0), "steps:12": (4.1, 24.0),
    "steps:8": (6.1, 20.0), "ralu-4x": (4.5, 24.5), "ralu-5x": (5.3, 23.0), "ralu-7x": (7.4, 20.5),
    "+teacache:0.25": (1.6, 35.0), "+teacache:0.4": (2.4, 31.0), "+teacache:0.6": (2.7, 28.0),
    "+seacache:0.2": (1.7, 47.0), "+seacache:0.3": (2.1, 39.0), "+seacache:0.5": (2.6, 31.5),
    "+taylorseer:2": (1.9, 45.0), "+taylorseer:3": (2.7, 41.0), "ralu-4x+seacache:0.4": (6.3, 24.0),
    "ralu-4x+teacache:0.4": (7.3, 21.0), "ralu-4x+taylorseer:5/2/2,first=1": (8.0, 22.5),
    "FirstBlockCache:0.1": (1.9, 33.0), "MagCache:0.2": (2.9, 27.0),
}  # fmt: skip
METRICS = {
    "attributes": MetricInfo("attribute accuracy", "%"),
    "psnr": MetricInfo("PSNR", "dB"),
    "psnr_uncached": MetricInfo("PSNR to the uncached plan", "dB"),
    "distance": MetricInfo("Fréchet distance", higher=False),
}
SCENES = [f"a red circle <{i}> on a blue & white background" for i in range(4)]


def distance(features: np.ndarray) -> float:
    return float(features.mean())


def fabricated(failing: str | None = "ralu-7x", batches: int = 4, sizes: tuple[int, ...] = (128,)) -> Results:
    """21 settings at each size on `batches` batches of 4 pictures; one batch of `failing` fails.

    A size other than 128 is as much faster as it is larger.
    """
    rng = np.random.default_rng(0)
    records = []
    for size, (method, (speed, psnr)) in product(sizes, SPEEDS.items()):
        for index in range(batches):
            batch = Batch(tuple(SCENES), tuple(range(4 * index, 4 * index + 4)))
            setting = Setting(method, 50, size, size)
            if method == failing and index == 1:
                records.append(Record(setting, batch, error="RuntimeError: out of <memory>"))
                continue
            noise = rng.normal(0, 1, (2, 4)) if method != "none" else np.zeros((2, 4))
            metrics = {
                "attributes": tuple((100 - (50 - psnr) / 2 + noise[0]).tolist()),
                "psnr": tuple((psnr + noise[1]).tolist()),
            }
            features = {"distance": tuple((50 - psnr + value, 1.0) for value in noise[0].tolist())}
            seconds = 8 / speed * 128 / size * float(rng.uniform(0.95, 1.05))
            records.append(Record(setting, batch, seconds, 8.0, 10 / speed, 10.0, metrics, features))
    header = Header(
        "tiny-flux",
        50,
        {"true_cfg_scale": 3.0},
        METRICS,
        "a CPU, 2 threads",
        {"torch": "2.13.0", "diffusers": "0.42.1"},
    )
    return Results(header, records)


def write_results(folder: Path, results: Results) -> Path:
    """results.jsonl, and a small picture of every run in pictures/."""
    from ralu_cache.sweep.pictures import CAPTIONS, slug

    path = folder / "results.jsonl"
    write_header(path, results.header)
    append(path, results.records)
    rng = np.random.default_rng(1)
    for setting in results.settings:
        for index in range(8):
            picture = folder / "pictures" / slug(setting) / f"{index}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
    batches = dict.fromkeys(record.batch for record in results.records)
    pairs = [pair for batch in batches for pair in zip(batch.prompts, batch.seeds, strict=True)]
    captions = [f"{prompt}, seed {seed}" for prompt, seed in pairs[:8]]
    (folder / "pictures" / CAPTIONS).write_text(json.dumps(captions))
    return path
