"""What a planted fault is: one wrong change of one file, and the tests that must notice it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A fault: in `file`, `old` becomes `new`; one of `tests` (pytest ids) must fail then.

    law: what is broken by it, in a sentence. Raises ValueError for a change that changes nothing, or no tests.
    """

    name: str
    law: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.old == self.new or not self.tests:
            raise ValueError(f"mutant {self.name!r} must change something, and name a test that notices it")

    def applied(self, text: str) -> str:
        """The file's text with the fault in it. Raises ValueError unless `old` stands there exactly once."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"mutant {self.name!r}: its old text must stand in {self.file} once, found {count} times")
        return text.replace(self.old, self.new)

    @contextmanager
    def planted(self, tree: Path) -> Iterator[None]:
        """Within it the fault is in the copy of the project at `tree`."""
        file = tree / self.file
        before = file.read_text()
        file.write_text(self.applied(before))
        try:
            yield
        finally:
            file.write_text(before)
