"""Puts the main table, each preset against the others at its cost, and the demo's pictures, into README.md and docs/.

Nothing there is typed by hand:

python -m benchmarks.regime.study --table
ralu-cache demo --out benchmarks/results/demo
python -m benchmarks.readme_table
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.evidence.readme import main_table

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- regime table: begin -->", "<!-- regime table: end -->"
WIDTH = 860  # pixels of the picture in docs/


def with_table(text: str, table: str) -> str:
    """The text with what stands between the two markers replaced. Raises ValueError if they are not there once each."""
    if (text.count(BEGIN), text.count(END)) != (1, 1):
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r} once each")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table}{END}{rest.split(END)[1]}"


def shrink(source: Path, target: Path) -> None:
    """A narrow copy with few colours, for a page that loads fast."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        height = round(picture.height * WIDTH / picture.width)
        small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(96).save(target, optimize=True)


def main(root: Path = ROOT) -> None:
    results = root / "benchmarks" / "results"
    readme = root / "README.md"
    readme.write_text(with_table(readme.read_text(), main_table(results / "regime")))
    shrink(results / "demo" / "tiny-flux" / "grid.png", root / "docs" / "demo.png")


if __name__ == "__main__":
    main()
