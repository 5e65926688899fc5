"""README.md: its table comes from the committed results, its commands and links exist."""

import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.readme_table import BEGIN, END, ROOT, main, measured_table, read_rows, shrink, with_table

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results" / "peers" / "table.csv"


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    new = with_table(text, "| new |\n")
    assert new == f"above\n{BEGIN}\n| new |\n{END}\nbelow\n"
    assert with_table(new, "| new |\n") == new


@pytest.mark.parametrize("text", ["nothing", f"{BEGIN} only", f"{BEGIN} {BEGIN} {END}"])
def test_missing_markers_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="measured table: begin"):
        with_table(text, "")


def test_picture_is_narrow_and_small(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1720, 1000)).save(tmp_path / "grid.png")
    shrink(tmp_path / "grid.png", tmp_path / "docs" / "demo.png")
    with Image.open(tmp_path / "docs" / "demo.png") as picture:
        assert picture.size == (860, 500)


COLUMNS = "method,family,steps,speedup,flop_ratio,psnr,psnr_standard_error,ssim,ssim_standard_error,attributes"
CSV = f"""{COLUMNS},attributes_standard_error
none,full,50,1,1,100,0,1,0,90,1
steps:7,steps,7,6,7.1,26,0.5,0.9,0.01,89,1
steps:9,steps,9,5,5.6,25,0.5,0.9,0.01,89,1
ralu-4x,spatial,50,5.2,6.1,23,0.5,0.87,0.01,88,1
+taylorseer:3,temporal,20,6,7,35,0.5,0.98,0.01,89,1
"""


def test_main_writes_table_and_picture(tmp_path: Path) -> None:
    """The slower of two plain runs is worse too, so it is left out; a kind is not held against another."""
    results = tmp_path / "benchmarks" / "results"
    for name in ("demo/tiny-flux", "peers"):
        (results / name).mkdir(parents=True)
    (results / "peers" / "table.csv").write_text(CSV)
    Image.new("RGB", (900, 300)).save(results / "demo" / "tiny-flux" / "grid.png")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    main(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [line.split(" | ")[2] for line in lines[3:-1]] == [
        "full run", "ours, spatial", "fewer plain steps", "ours, temporal",
    ]  # fmt: skip
    assert "| `ralu-4x` | 50 | ours, spatial | 5.20x | 6.10x | 23.0 ± 0.5 dB | 0.870 ± 0.010 | 88.0 ± 1.0 % |" in lines
    assert (tmp_path / "docs" / "demo.png").exists()


def test_the_committed_table_is_that_of_the_committed_results() -> None:
    assert with_table(README, measured_table(read_rows(RESULTS))) == README


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
