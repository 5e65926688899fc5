"""`python -m benchmarks.mutation`: what is changed, which tests are asked, and what is told of it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from benchmarks.mutation.__main__ import rooms_tests
from benchmarks.mutation.changes import Change, Places
from benchmarks.mutation.found import Found, append, read, settled
from benchmarks.mutation.page import page
from benchmarks.mutation.reach import Reach, recorded, statement

CODE = '''"""Half of it."""

from __future__ import annotations


def half(values: list[int] | None, all: bool = False) -> float | None:
    if all and (count := len(values)) < 3:
        return count + 1 | 0
    return None
'''


@pytest.fixture
def made(tmp_path: Path) -> list[Change]:
    (tmp_path / "half.py").write_text(CODE)
    return list(Places(tmp_path, "half.py").changes())


def test_each_change_is_another_program(made: list[Change]) -> None:
    programs = {ast.dump(ast.parse(change.code)) for change in made}
    assert len(programs) == len(made) == len({change.key for change in made})
    assert ast.dump(ast.parse(CODE)) not in programs


def test_of_what_is_never_executed_nothing_is_changed(made: list[Change]) -> None:
    assert {change.line for change in made} == {6, 7, 8}, "line 6 for its False alone"
    assert [change.new for change in made if change.line == 6] == [
        "def half(values: list[int] | None, all: bool = True) -> float | None:"
    ]
    assert any("count + 1 & 0" in change.new for change in made)
    assert any("<= 3" in change.new for change in made) and any("all or" in change.new for change in made)


def test_the_order_is_random_and_the_same_again(made: list[Change], tmp_path: Path) -> None:
    """So a larger sample begins with a smaller one."""
    again, other = (Places(tmp_path, "half.py", seed) for seed in (0, 1))
    assert list(again.changes()) == made and len(again) >= len(made)
    found = list(other.changes())
    assert found != made and {change.key for change in found} == {change.key for change in made}


def test_the_rooms_tests_some_files(tmp_path: Path) -> None:
    """Those that bear a file's name, and those that import one and draw no pictures."""
    (tmp_path / "tests").mkdir()
    files = {
        "test_half": "", "test_room_whole": "import diffusers", "test_far": "import torch",
        "test_other": "from ralu_cache.room.half import half",
        "test_drawing": "from ralu_cache.room import half, whole\nfrom tests.pipelines import make_pipeline",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "tests" / f"{name}.py").write_text(text)
    half, whole = "ralu_cache/room/half.py", "ralu_cache/room/whole.py"
    assert rooms_tests(tmp_path, [half]) == ("tests/test_half.py", "tests/test_other.py")
    assert rooms_tests(tmp_path, [half, whole]) == (
        "tests/test_half.py", "tests/test_other.py", "tests/test_room_whole.py"
    )  # fmt: skip
    assert rooms_tests(tmp_path, ["ralu_cache/room/none.py"]) == ()


def test_what_survived_is_tried_again_once_its_tests_have_changed(made: list[Change], tmp_path: Path) -> None:
    log = tmp_path / "new" / "found.jsonl"
    for found, done in (
        (None, False), (Found("a test", "before"), True), (Found(None, "now"), True), (Found(None, "before"), False)
    ):  # fmt: skip
        if found is not None:
            append(log, made[0], found)
        assert settled(made[0], read(log), "now") is done


STATEMENTS = """import math

LIMIT = 3


def half(
    values, some=LIMIT + 1
):
    if some and (
        len(values) < 3
    ):
        return [
            1,
            2,
        ]
    return math.pi
"""


def test_the_statement_of_a_line() -> None:
    """Of what has a body its head alone, which may be of several lines."""
    found = {line: statement(STATEMENTS, line) for line in (3, 6, 7, 10, 13, 16)}
    assert [(lines.start, lines.stop - 1) for lines in found.values()] == [
        (3, 3), (6, 8), (6, 8), (9, 11), (12, 15), (16, 16)
    ]  # fmt: skip


def test_a_change_is_shown_to_those_that_execute_it() -> None:
    reach = Reach({"a.py": {"9": ["quick", "slow"], "12": ["slow"]}}, {"quick": 0.1, "slow": 2.0}, "")
    assert reach.of("a.py", STATEMENTS, 10) == ("quick", "slow")
    assert reach.of("a.py", STATEMENTS, 13) == ("slow",)
    assert reach.of("a.py", STATEMENTS, 3) == ("quick", "slow"), "all of the file's: it runs at import"
    assert reach.of("b.py", STATEMENTS, 3) == ()


def test_what_tests_execute_is_recorded_once(tmp_path: Path) -> None:
    """In a project of two functions, of which each test calls one."""
    (tmp_path / "room").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "room" / "one.py").write_text("def one():\n    return 1\n\n\ndef two():\n    return 2\n")
    (tmp_path / "tests" / "test_one.py").write_text(
        "from room.one import one, two\n\ndef test_one():\n    assert one() == 1\n\n"
        "def test_two():\n    assert two() == 2\n"
    )
    given = ["room/one.py"], ["tests/test_one.py"], tmp_path / "store" / "reach.json", 60.0
    reach = recorded(tmp_path, *given)
    assert reach.tests == {
        "room/one.py": {"2": ["tests/test_one.py::test_one"], "6": ["tests/test_one.py::test_two"]}
    }
    assert reach.seconds.keys() == {"tests/test_one.py::test_one", "tests/test_one.py::test_two"}
    assert recorded(tmp_path, *given) == reach
    changed = tmp_path / "room" / "one.py"
    changed.write_text("def one():\n    return 2\n\n\ndef two():\n    return 2\n")
    os.utime(changed, (0, 0))  # of the same size, and perhaps of the same second: bytecode goes by these
    with pytest.raises(RuntimeError, match="test_one fails without any change"):
        recorded(tmp_path, *given)


def test_the_page_counts_and_names_survivors(made: list[Change], tmp_path: Path) -> None:
    log = tmp_path / "found.jsonl"
    log.write_text(
        f'{{"key": "{made[0].key}", "caught": null, "tests": "a"}}\n'
        f'{{"key": "{made[1].key}", "caught": null, "tests": "a"}}\n'
        f'{{"key": "{made[1].key}", "caught": "tests/test_half.py::test_a", "tests": "b"}}\n'
    )
    text = page({"half.py": 40}, {"half.py": made[:3]}, read(log))
    assert "At 40 places 3 changes were drawn at random, file by file, and 2 tried; 1 were noticed" in text
    assert "| `half.py` | 40 | 2 | 1 |" in text
    assert text.count("became") == 1 and f"`{made[0].old}` became `{made[0].new}`: not looked at yet" in text
