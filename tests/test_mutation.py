"""`python -m benchmarks.mutation`: what is changed, which tests are asked, and what is told of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.mutation.__main__ import Found, digest, its_tests, page, read, settled
from benchmarks.mutation.changes import Change, changes, sample

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
    return list(changes(tmp_path, "half.py"))


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


def test_a_larger_sample_begins_with_a_smaller_one(made: list[Change]) -> None:
    assert sample(made, 3) == sample(made, 6)[:3] and len(set(sample(made, 99))) == len(made)


def test_the_tests_of_a_file(tmp_path: Path) -> None:
    """Those with its name and those that import it; those that draw only where there are no others."""
    (tmp_path / "tests").mkdir()
    files = {
        "test_half": "", "test_other": "from ralu_cache.room.half import half", "test_far": "import torch",
        "test_drawing": "from ralu_cache.room import half, whole\nfrom tests.pipelines import make_pipeline",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "tests" / f"{name}.py").write_text(text)
    assert its_tests(tmp_path, "ralu_cache/room/half.py") == ("tests/test_half.py", "tests/test_other.py")
    assert its_tests(tmp_path, "ralu_cache/room/whole.py") == ("tests/test_drawing.py",)
    assert its_tests(tmp_path, "ralu_cache/room/none.py") == ()


def test_what_survived_is_tried_again_once_its_tests_have_changed(made: list[Change]) -> None:
    tests = ("tests/test_mutation.py",)
    now, before = digest(tests), "other"
    for found, done in (
        (None, False), (Found("a test", before), True), (Found(None, now), True), (Found(None, before), False)
    ):  # fmt: skip
        assert settled(made[0], {made[0].key: found} if found else {}, tests) is done


def test_the_page_counts_and_names_survivors(made: list[Change], tmp_path: Path) -> None:
    log = tmp_path / "found.jsonl"
    log.write_text(
        f'{{"key": "{made[0].key}", "caught": null, "tests": "a"}}\n'
        f'{{"key": "{made[1].key}", "caught": null, "tests": "a"}}\n'
        f'{{"key": "{made[1].key}", "caught": "tests/test_half.py::test_a", "tests": "b"}}\n'
    )
    text = page({"half.py": made}, {"half.py": made[:3]}, {"half.py": ("tests/test_half.py",)}, read(log))
    assert f"Of {len(made)} changes 3 were drawn at random, file by file, and 2 tried; 1 were noticed" in text
    assert f"| `half.py` | {len(made)} | 2 | 1 | half |" in text
    assert text.count("became") == 1 and f"`{made[0].old}` became `{made[0].new}`" in text
