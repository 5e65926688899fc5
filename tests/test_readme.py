"""README.md: its table comes from the committed results, its commands and links exist."""

import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.evidence.readme import main_table
from benchmarks.readme_table import BEGIN, END, ROOT, shrink, with_table

README = (ROOT / "README.md").read_text()


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    new = with_table(text, "| new |\n")
    assert new == f"above\n{BEGIN}\n| new |\n{END}\nbelow\n"
    assert with_table(new, "| new |\n") == new


@pytest.mark.parametrize("text", ["nothing", f"{BEGIN} only", f"{BEGIN} {BEGIN} {END}"])
def test_missing_markers_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="regime table: begin"):
        with_table(text, "")


def test_picture_is_narrow_and_small(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1720, 1000)).save(tmp_path / "grid.png")
    shrink(tmp_path / "grid.png", tmp_path / "docs" / "demo.png")
    with Image.open(tmp_path / "docs" / "demo.png") as picture:
        assert picture.size == (860, 500)


def test_the_committed_table_is_that_of_the_committed_results() -> None:
    assert with_table(README, main_table(ROOT / "benchmarks" / "results" / "regime")) == README


def test_readme_is_short_and_its_links_exist() -> None:
    assert len(README.splitlines()) <= 150
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_readme_commands_parse() -> None:
    from ralu_cache.cli import _parser

    lines = re.findall(r"^ralu-cache ((?:[^\n]|(?<=\\)\n)+)$", README, flags=re.MULTILINE)
    assert lines
    for line in lines:
        words = re.findall(r'"([^"]*)"|(\S+)', line.split("  #")[0].replace("\\\n", " "))
        _parser().parse_args([quoted or plain for quoted, plain in words])
