"""Pictures of plain runs of the embedded models, each drawn once and kept, so that every study goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.tiny_flux.evaluate import HELD_OUT_SEED
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.base import Pictures

SPLITS = {"train": 2026, "held-out": HELD_OUT_SEED, "study": 20261129}
"""Seeds of the prompts: settings are chosen on "train" (the prompts of all studies), reported on "held-out", and by the
regime's study on prompts of its own, "study"."""
BATCH = 8
SHELF = Path("out/regime")


def scene_prompts(split: str, count: int) -> tuple[str, ...]:
    """The first prompts of a split. Raises ValueError for a split that is none."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; accepted: {', '.join(SPLITS)}")
    rng = np.random.default_rng(SPLITS[split])
    return tuple(sample_scene(rng).prompt for _ in range(count))


@dataclass(frozen=True)
class PlainRun:
    """A stock pipeline at a guidance and a number of steps; picture i has the split's prompt i and seed first_seed + i.

    folder: a saved pipeline of this model, else the shipped one.
    """

    model: str
    guidance: float
    steps: int
    split: str = "train"
    first_seed: int = 0
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.model not in EMBEDDED or EMBEDDED[self.model].output != "images":
            raise ValueError(f"model is {self.model!r}; an embedded model of pictures is needed")
        if self.steps < 1 or not self.guidance >= 1:
            raise ValueError(f"steps and guidance must be at least 1, got {self.steps} and {self.guidance}")

    @property
    def name(self) -> str:
        """One for each setting and version of the weights."""
        weights = fingerprint(self.folder or EMBEDDED[self.model].folder)
        return f"{self.model}-{weights}-g{self.guidance:g}-{self.steps}-{self.split}-{self.first_seed}"


@cache
def fingerprint(folder: Path) -> str:
    """Eight digits that tell versions of a saved pipeline's transformer apart."""
    weights = sorted((folder / "transformer").glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()[:8]


@cache
def load(model: str, folder: Path | None) -> Any:
    """The pipeline in float32 on the CPU, without progress bars."""
    import diffusers

    embedded = EMBEDDED[model]
    if folder is None:
        pipe = embedded.load()
    else:
        pipe = getattr(diffusers, embedded.pipeline).from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(run: PlainRun, start: int) -> Pictures:
    """The pictures start to start + BATCH (BATCH, Y, X, 3) in [0, 1] of a run."""
    embedded = EMBEDDED[run.model]
    prompts = list(scene_prompts(run.split, start + BATCH)[start:])
    scale = next(name for name in embedded.arguments if name.endswith("_scale"))
    negative = {} if run.model == "tiny-flux-dev" else {"negative_prompt": [""] * BATCH}
    generators = [torch.Generator().manual_seed(run.first_seed + start + index) for index in range(BATCH)]
    arguments = {**embedded.arguments, scale: run.guidance, **negative}
    size = embedded.size
    found: Pictures = load(run.model, run.folder)(
        prompts, height=size, width=size, num_inference_steps=run.steps, generator=generators, output_type="np",
        **arguments,
    ).images  # fmt: skip
    return found


@dataclass(frozen=True)
class Shelf:
    """Drawn pictures by run and batch, in 8 bits, in files of a folder; `make` draws what is missing."""

    folder: Path = SHELF
    make: Callable[[PlainRun, int], Pictures] = field(default=draw, repr=False)

    def pictures(self, run: PlainRun, count: int) -> Pictures:
        """The first `count` pictures of a run (count, Y, X, 3) in [0, 1]. Raises ValueError for fewer than one."""
        if count < 1:
            raise ValueError(f"count is {count}; at least 1 is needed")
        place = self.folder / run.name
        place.mkdir(parents=True, exist_ok=True)
        starts = range(0, count, BATCH)
        paths = [place / f"{start:04d}.npy" for start in starts]
        for start, path in tqdm([*zip(starts, paths, strict=True)], desc=run.name, mininterval=30, disable=None):
            if not path.exists():
                unfinished = path.with_suffix(".tmp")
                with unfinished.open("wb") as file:
                    np.save(file, to_bytes(self.make(run, start)))
                unfinished.replace(path)
        drawn = np.concatenate([np.load(path) for path in paths])[:count]
        shown: Pictures = (drawn / 255).astype(np.float32)
        return shown


def to_bytes(pictures: Pictures) -> NDArray[np.uint8]:
    """[0, 1] to 0 ... 255, rounded."""
    return (pictures.clip(0, 1) * 255).round().astype(np.uint8)


def sheet(rows: dict[str, Pictures], columns: int) -> NDArray[np.uint8]:
    """The first pictures of each row, one row below the other (8 bits)."""
    return to_bytes(np.concatenate([np.concatenate(list(shown[:columns]), 1) for shown in rows.values()]))


def shrink(path: Path, size: tuple[int, int], colours: int) -> None:
    """Makes the file of a picture small: at most `size` (width, height), of so many colours."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail(size, Image.Resampling.LANCZOS)
    small.quantize(colours).save(path, optimize=True)
