"""The planted faults fit the code that they are planted in; `python -m benchmarks.mutants` runs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_its_file(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    changed = mutant.applied(text)
    assert changed != text
    compile(changed, mutant.file, "exec")
    for test in mutant.tests:
        file, name = test.split("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), f"{mutant.name}: there is no {test}"


def test_each_has_a_name_of_its_own() -> None:
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1


def test_what_does_not_fit_is_refused() -> None:
    fault = Mutant("any", "none", "a.py", "one", "two", ("tests/test_a.py::test_a",))
    for text in ("three", "one one"):
        with pytest.raises(ValueError, match="once"):
            fault.applied(text)
    with pytest.raises(ValueError, match="must change something"):
        Mutant("any", "none", "a.py", "one", "one", ("tests/test_a.py::test_a",))
    with pytest.raises(ValueError, match="name a test"):
        Mutant("any", "none", "a.py", "one", "two", ())


def test_a_fault_is_planted_and_taken_out_again(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("one\n")
    with pytest.raises(RuntimeError), Mutant("any", "none", "a.py", "one", "two", ("a",)).planted(tmp_path):
        assert file.read_text() == "two\n"
        raise RuntimeError
    assert file.read_text() == "one\n"
