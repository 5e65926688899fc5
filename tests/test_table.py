"""One table in Markdown, in plain text and in a terminal."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.report.table import Bold, Table, show

TABLE = Table(("method", "PSNR [dB]", "why"), [("a|b", Bold("31.2"), "[bold]two\nlines"), ("c", "7", "")], left=(0, 2))
CELLS = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), max_size=12)


def test_markdown_keeps_every_cell_in_its_place() -> None:
    assert TABLE.markdown().splitlines() == [
        "| method | PSNR [dB] | why |",
        "|---|---:|---|",
        "| a\\|b | **31.2** | [bold]two lines |",
        "| c | 7 |  |",
    ]


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_markdown_has_a_line_a_row_and_as_many_cells(rows: list[tuple[str, str]]) -> None:
    lines = Table(("a", "b"), rows).markdown().splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)


def test_plain_text_is_aligned_and_without_colours() -> None:
    lines = Table(("name", "count"), [("a", "1"), ("longer", Bold("10000"))]).plain().splitlines()
    assert [line.rstrip() for line in lines] == ["name    count", "a           1", "longer  10000"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_it_is_drawn_in_a_terminal_and_markdown_elsewhere(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    written = io.StringIO()
    written.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(TABLE)
    text = written.getvalue()
    assert ("\x1b[1m" in text) == terminal and (text == TABLE.markdown() + "\n") != terminal
    assert "31.2" in text and "[bold]two" in text, "what looks like markup is text"


def test_plain_text_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert Table(("stage", "steps"), [("coarse", "8")]).plain() == "stage   steps\ncoarse      8"
