"""The pictures that a sweep keeps, a few as PNG files, one folder for each setting; and strips of the same prompts."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ralu_cache.quality.base import Pictures
from ralu_cache.sweep.records import Batch, Setting
from ralu_cache.sweep.summary import Summary
from ralu_cache.sweep.tables import times

KEPT = 8
CAPTIONS = "captions.json"
Strip = tuple[str, dict[str, Path]]
"""A setting with its speed, and its picture files by what they show."""


def slug(setting: Setting) -> str:
    """A folder's name for a setting, one for each."""
    method = re.sub(r"[^A-Za-z0-9.=-]+", "_", setting.method)
    return f"{method}-{setting.steps}-{setting.height}x{setting.width}"


def kept(setting: Setting, pictures: Path) -> dict[str, Path]:
    """A setting's files by what they show, out of a folder that `PictureFolder` filled; none where it is missing."""
    captions = pictures / CAPTIONS
    told: list[str] = json.loads(captions.read_text()) if captions.exists() else []
    files = {caption: pictures / slug(setting) / f"{index}.png" for index, caption in enumerate(told[:KEPT])}
    return {caption: file for caption, file in files.items() if file.exists()}


class PictureFolder:
    """Saves the pictures of the first `KEPT` prompts and seeds under `<out>/pictures/<slug>/<index>.png`.

    `<out>/pictures/captions.json` lists what they show.
    """

    def __init__(self, out: Path, batches: list[Batch]) -> None:
        self.out = out / "pictures"
        pairs = [pair for batch in batches for pair in zip(batch.prompts, batch.seeds, strict=True)]
        self._index = {pair: index for index, pair in enumerate(pairs[:KEPT])}

    def __call__(self, setting: Setting, batch: Batch, pictures: Pictures) -> None:
        for pair, picture in zip(zip(batch.prompts, batch.seeds, strict=True), pictures, strict=True):
            if (index := self._index.get(pair)) is None:
                continue
            folder = self.out / slug(setting)
            folder.mkdir(parents=True, exist_ok=True)
            captions = folder.parent / CAPTIONS
            captions.write_text(json.dumps([f"{prompt}, seed {seed}" for prompt, seed in self._index], indent=1) + "\n")
            Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(folder / f"{index}.png")


def strips(summary: Summary, pictures: Path) -> list[Strip]:
    """Of the full run of each size and the front of the metric that matters most, by speed, those with pictures.

    pictures: the folder of `PictureFolder`; it may be missing.
    """
    front = summary.front(summary.main_metric) if summary.header.metrics else []
    rows = [*(row for row in summary.rows if row.family == "full"), *(row for row in front if row.family != "full")]
    found = [(f"{summary.label(row)}, {times(row.speedup)}", kept(row.setting, pictures)) for row in rows]
    return [(name, files) for name, files in found if files]


def save_strip(shown: Sequence[Strip], path: Path) -> None:
    """A line for each of the settings that have all pictures of the first."""
    from ralu_cache.report.figures import save_grid

    captions = list(shown[0][1])
    rows = {
        _lines(name): [Image.open(files[told]) for told in captions]
        for name, files in shown if list(files) == captions
    }  # fmt: skip
    save_grid(rows, captions, path)


def _lines(name: str) -> str:
    parts = name.replace("+", " +").replace(",", ", ").split()
    return textwrap.fill(" ".join(parts), 24)
