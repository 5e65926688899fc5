"""A table of text, made once and shown in Markdown files, in plain text, in a terminal, and by templates of pages."""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Bold(str):
    """A cell to point out."""

    def __html__(self) -> str:  # what templates ask for
        return f"<b>{escape(self)}</b>"


@dataclass(frozen=True)
class Table:
    """`rows` of cells under their titles. left: the columns of words, flush left; the others hold numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Collection[int] = (0,)

    def markdown(self) -> str:
        rule = "".join("---|" if index in self.left else "---:|" for index in range(len(self.titles)))
        lines = [f"| {' | '.join(map(_markdown_cell, cells))} |" for cells in (self.titles, *self.rows)]
        return "\n".join([lines[0], f"|{rule}", *lines[1:]])

    def plain(self, gap: int = 2) -> str:
        """Aligned by spaces, `gap` of them between two columns; every line is as long as the longest."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=100_000, color_system=None, force_jupyter=False)
        console.print(self._rich(box=None, padding=(0, gap, 0, 0), pad_edge=False))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().removesuffix("\n")

    def __rich__(self) -> RichTable:
        from rich.box import SIMPLE_HEAD

        return self._rich(box=SIMPLE_HEAD)

    def _rich(self, **look: Any) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(**look)
        for index, title in enumerate(self.titles):
            table.add_column(Text(title), justify="left" if index in self.left else "right")
        for cells in self.rows:
            table.add_row(*(Text(cell, style="bold" if isinstance(cell, Bold) else "") for cell in cells))
        return table


def show(table: Table) -> None:
    """Prints it: drawn where standard output is a terminal, as Markdown elsewhere."""
    if not sys.stdout.isatty():
        print(table.markdown())
        return
    import rich

    rich.print(table)


def escape_cell(text: str) -> str:
    """Text that stays in one cell, or one line, of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")


def _markdown_cell(text: str) -> str:
    return f"**{escape_cell(text)}**" if isinstance(text, Bold) else escape_cell(text)
