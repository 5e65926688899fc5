"""What is covered is decided by some tests alone; in the others the tracer pauses, where there is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_collection_modifyitems
from tests.covering import COVERING, mark_covering


class Item:
    """A test in a file of this name, with these marks."""

    def __init__(self, stem: str, *marks: str) -> None:
        self.path, self.marks = Path(f"{stem}.py"), list(marks)

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None

    def add_marker(self, name: str) -> None:
        self.marks.append(name)


def marked(pausing: bool) -> list[list[str]]:
    items: list[Any] = [Item("test_ledger"), Item("test_caching", "slow"), Item("test_app")]
    mark_covering(items, pausing)
    return [item.marks for item in items]


def test_where_nothing_is_traced_nothing_pauses() -> None:
    assert marked(pausing=False) == [["covering"], ["slow"], []]
    assert marked(pausing=True) == [["covering"], ["slow", "no_cover"], ["no_cover"]]


@pytest.mark.parametrize(("source", "pauses"), [(None, True), ([], False), (["ralu_cache/history"], False)])
def test_it_pauses_where_the_configuration_says_what_is_traced(source: list[str] | None, pauses: bool) -> None:
    items: list[Any] = [Item("test_app")]
    config: Any = SimpleNamespace(getoption=lambda name, default: {"cov_source": source}.get(name, default))
    pytest_collection_modifyitems(config, items)
    assert ("no_cover" in items[0].marks) == pauses


def test_each_is_there() -> None:
    assert {path.stem for path in Path(__file__).parent.glob("test_*.py")} >= COVERING
