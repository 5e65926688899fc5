"""The kept pictures of the same prompts: for the full run and for each setting on the front."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ralu_cache.sweep.pictures import kept
from ralu_cache.sweep.recommend import default_metric
from ralu_cache.sweep.summary import Summary
from ralu_cache.sweep.tables import times

Strip = tuple[str, dict[str, Path]]
"""A setting with its speed, and its picture files by what they show."""


def strips(summary: Summary, pictures: Path) -> list[Strip]:
    """Of the full run of each size and the front of the metric that matters most, by speed, those with pictures.

    pictures: the folder of `PictureFolder`; it may be missing.
    """
    front = summary.front(default_metric(summary)) if summary.header.metrics else []
    rows = [*(row for row in summary.rows if row.family == "full"), *(row for row in front if row.family != "full")]
    found = [(f"{summary.label(row)}, {times(row.speedup)}", kept(row.setting, pictures)) for row in rows]
    return [(name, files) for name, files in found if files]


def save_strip(shown: Sequence[Strip], path: Path) -> None:
    """A line for each of the settings that have all pictures of the first; needs matplotlib."""
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
