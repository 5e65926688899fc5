"""The kept pictures of the same prompts, a line for the full run and for each setting on the front."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from ralu_cache.sweep.pictures import KEPT, slug
from ralu_cache.sweep.recommend import default_metric
from ralu_cache.sweep.summary import Row, Summary

LEFT = 210  # pixels for the names
LETTERS = 32  # of a name in a line


def save_strip(summary: Summary, pictures: Path, path: Path, size: int = 128) -> None:
    """One line of pictures, `size` pixels each, for each of `strip_rows`; nothing if none were kept."""
    rows = [row for row in strip_rows(summary) if picture_files(row, pictures)]
    if not rows:
        return
    sheet = Image.new("RGB", (LEFT + KEPT * size, len(rows) * size), "white")
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        name = summary.label(row).replace("+", " +").replace(",", ", ")
        lines = [f"{row.speedup:.2f}x", *textwrap.wrap(name.strip(), LETTERS)]
        middle = line * size + size / 2
        draw.multiline_text((6, middle), "\n".join(lines), fill="black", anchor="lm", spacing=3)
        for file in picture_files(row, pictures):
            with Image.open(file) as picture:
                sheet.paste(picture.convert("RGB").resize((size, size)), (LEFT + int(file.stem) * size, line * size))
    sheet.save(path)


def strip_rows(summary: Summary) -> list[Row]:
    """The full run of each size, then the front of the metric that matters most, by speed."""
    front = summary.front(default_metric(summary)) if summary.header.metrics else []
    full = [row for row in summary.rows if row.family == "full"]
    return [*full, *(row for row in front if row.family != "full")]


def picture_files(row: Row, pictures: Path) -> list[Path]:
    files = (pictures / slug(row.setting) / f"{index}.png" for index in range(KEPT))
    return [file for file in files if file.exists()]
