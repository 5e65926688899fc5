"""Small pictures of what settings draw, side by side, for the page of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ralu_cache.tune.bench import Bytes

HEIGHT = 128  # pixels
MOST = 6


def save_strip(path: Path, pictures: Sequence[Bytes]) -> None:
    """The first of them, each (B, Y, X, 3) or the middle frame of (B, F, Y, X, 3), in one PNG."""
    flat = [
        picture[len(picture) // 2] if picture.ndim == 4 else picture for batch in pictures for picture in batch
    ][:MOST]
    scale = min(1.0, HEIGHT / flat[0].shape[0])
    size = round(flat[0].shape[1] * scale), round(flat[0].shape[0] * scale)
    small = [np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)) for picture in flat]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(small, 1)).save(path, optimize=True)
