"""What is covered is decided by some tests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.covering import COVERING, mark_covering


class Item:
    """A test in a file of this name, with these marks."""

    def __init__(self, stem: str, *marks: str) -> None:
        self.path, self.marks = Path(f"{stem}.py"), list(marks)

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None

    def add_marker(self, name: str) -> None:
        self.marks.append(name)


def test_those_of_the_files_that_count_are_marked_unless_they_are_slow() -> None:
    items: list[Any] = [Item("test_ledger"), Item("test_caching", "slow"), Item("test_app")]
    mark_covering(items)
    assert [item.marks for item in items] == [["covering"], ["slow"], []]


def test_each_is_there() -> None:
    assert {path.stem for path in Path(__file__).parent.glob("test_*.py")} >= COVERING
