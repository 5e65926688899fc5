"""Puts the measured table of all methods, and the demo's pictures, into README.md and docs/: nothing is typed by hand.

python -m benchmarks.peers
ralu-cache demo --out benchmarks/results/demo
python -m benchmarks.readme_table
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- measured table: begin -->", "<!-- measured table: end -->"
WIDTH = 860  # pixels of the picture in docs/
KINDS = {
    "full": "full run", "steps": "fewer plain steps", "peer": "peer", "spatial": "ours, spatial",
    "temporal": "ours, temporal", "guidance": "ours, guidance", "combined": "ours, both",
}  # fmt: skip
TITLES = "| method | steps | kind | faster | fewer FLOPs | PSNR | SSIM | attributes |"
ALIGNED = "|---|---:|---|---:|---:|---:|---:|---:|"

MARKS = (5,)  # times faster
Row = Mapping[str, str]


def measured_table(rows: Sequence[Row]) -> str:
    """The full run, and of each kind the best in PSNR of those that are at least 5 times faster."""
    chosen = [row for row in rows if row["family"] == "full"]
    for kind, mark in product(KINDS, MARKS):
        fast = [row for row in rows if row["family"] == kind != "full" and float(row["speedup"]) >= mark]
        best = max(fast, key=lambda row: float(row["psnr"]), default=None)
        if best is not None and best not in chosen:
            chosen.append(best)
    chosen.sort(key=lambda row: float(row["speedup"]))
    return f"{TITLES}\n{ALIGNED}\n" + "".join(_line(row) for row in chosen)


def _line(row: Row) -> str:
    full = row["family"] == "full"
    flops = f"{float(row['flop_ratio']):.2f}x" if row["flop_ratio"] else ""
    likeness = ["", ""] if full else [_figure(row, "psnr", 1, " dB"), _figure(row, "ssim", 3)]
    method = "" if full or row["family"] == "steps" else f"`{row['method']}`"
    speed = f"{float(row['speedup']):.2f}x"
    cells = [method, row["steps"], KINDS[row["family"]], speed, flops, *likeness, _figure(row, "attributes", 1, " %")]
    return f"| {' | '.join(cells)} |\n"


def _figure(row: Row, name: str, digits: int, unit: str = "") -> str:
    return f"{float(row[name]):.{digits}f} ± {float(row[f'{name}_standard_error']):.{digits}f}{unit}"


def with_table(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with what stands between the two markers replaced. Raises ValueError if they are not there once each."""
    if (text.count(begin), text.count(end)) != (1, 1):
        raise ValueError(f"expected the lines {begin!r} and {end!r} once each")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}{end}{rest.split(end)[1]}"


def shrink(source: Path, target: Path) -> None:
    """A narrow copy with few colours, for a page that loads fast."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        height = round(picture.height * WIDTH / picture.width)
        small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(96).save(target, optimize=True)


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main(root: Path = ROOT) -> None:
    results = root / "benchmarks" / "results"
    readme = root / "README.md"
    readme.write_text(with_table(readme.read_text(), measured_table(read_rows(results / "peers" / "table.csv"))))
    shrink(results / "demo" / "tiny-flux" / "grid.png", root / "docs" / "demo.png")


if __name__ == "__main__":
    main()
