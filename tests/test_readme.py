"""README.md: its table comes from the demo's report, its commands and links exist."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.readme_table import BEGIN, END, ROOT, main, shrink, with_table
from ralu_cache.comparison import markdown_table

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results" / "demo" / "report.json"


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    new = with_table(text, "| new |\n")
    assert new == f"above\n{BEGIN}\n| new |\n{END}\nbelow\n"
    assert with_table(new, "| new |\n") == new


@pytest.mark.parametrize("text", ["nothing", f"{BEGIN} only", f"{BEGIN} {BEGIN} {END}"])
def test_missing_markers_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="demo table: begin"):
        with_table(text, "")


def test_picture_is_narrow_and_small(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1720, 1000)).save(tmp_path / "grid.png")
    shrink(tmp_path / "grid.png", tmp_path / "docs" / "demo.png")
    with Image.open(tmp_path / "docs" / "demo.png") as picture:
        assert picture.size == (860, 500)


def test_main_writes_table_and_picture(tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "results" / "demo"
    results.mkdir(parents=True)
    row = {"steps": 50, "flops": 1e9, "flop_ratio": 1.0, "seconds": 9.0, "ratio": 1.0, "ratio_range": [1.0, 1.0]}
    summary = {
        "model": "tiny-flux", "size": 128, "prompts": ["a"], "seeds": [0], "repeats": 3, "versions": {"torch": "2.13"},
        "hardware": {"name": "a processor", "threads": 2}, "methods": {"full": {**row, "psnr": None, "ssim": None}},
    }  # fmt: skip
    (results / "report.json").write_text(json.dumps(summary))
    Image.new("RGB", (900, 300)).save(results / "grid.png")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    main(tmp_path)
    assert "| full | 50 | 1.00 G | 1.00x | 9.00 | 1.00x |" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "docs" / "demo.png").exists()


@pytest.mark.skipif(not RESULTS.exists(), reason="no committed demo results")
def test_the_committed_table_is_that_of_the_committed_report() -> None:
    assert with_table(README, markdown_table(json.loads(RESULTS.read_text()))) == README


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
