"""The planted faults fit the code that they are planted in; `python -m benchmarks.mutants` runs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.mutants import MUTANTS, Mutant, runner
from benchmarks.mutants.__main__ import WHOLE, page, run
from benchmarks.mutants.runner import Outcome

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


def test_it_goes_on_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was noticed is not tried again; what survived is. The page tells all."""
    some, asked = MUTANTS[:3], []
    answers = {some[0].tests: "a|test", some[1].tests: None, some[2].tests: "another"}

    def run_tests(tree: Path, tests: tuple[str, ...], **_: object) -> Outcome:
        asked.append(tests)
        if tests == some[2].tests and len(asked) < 5:
            raise KeyboardInterrupt
        return Outcome(answers.get(tuple(tests)), 1.0)

    for name, stand_in in {"run_tests": run_tests, "warm_up": lambda: None}.items():
        monkeypatch.setattr(runner, name, stand_in)
    with pytest.raises(KeyboardInterrupt):
        run(some, tmp_path / "log")
    assert asked[1:] == [mutant.tests for mutant in some]
    asked.clear()
    asked += [()] * 4
    found = run(some, tmp_path / "log")
    assert asked[4][0] == "--collect-only" and asked[5:] == [some[1].tests, some[2].tests]
    assert found.keys() == {WHOLE, *(mutant.name for mutant in some)}
    text = page({"all": some}, found)
    assert "2 of 3 were noticed, in 4 s" in text and "`a\\|test`" in text and text.count("**nothing**") == 1
