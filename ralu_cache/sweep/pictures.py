"""The pictures that a sweep keeps for its strips: a few, as PNG files, one folder for each setting."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from ralu_cache.quality.base import Pictures
from ralu_cache.sweep.records import Batch, Setting

KEPT = 8
CAPTIONS = "captions.json"


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
