"""Which tests execute which lines, recorded once, so that a change is shown to these alone, the quickest first."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

QUICK = ("-m", "not slow")


@dataclass(frozen=True)
class Reach:
    """tests: of each file of the library, and of each line, the ids of those that execute it. seconds: of each test.

    A line that runs when its file is imported is executed by none. digest: of what it was recorded with.
    """

    tests: Mapping[str, Mapping[str, Sequence[str]]]
    seconds: Mapping[str, float]
    digest: str

    def of(self, file: str, source: str, line: int) -> tuple[str, ...]:
        """Those that execute the statement which this line of the file's text belongs to, the quickest first.

        All of the file's where that statement runs at import: a default, a constant, a decorator.
        """
        lines = self.tests.get(file, {})
        found = {test for number in statement(source, line) for test in lines.get(str(number), ())}
        found = found or {test for tests in lines.values() for test in tests}
        return tuple(sorted(found, key=lambda test: (self.seconds[test], test)))


def statement(source: str, line: int) -> range:
    """The lines of the innermost statement around this one; of a statement with a body, its head alone."""
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):  # outer statements come before those within them
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = max(node.lineno, body[0].lineno - 1) if isinstance(body, list) else node.end_lineno or node.lineno
            if node.lineno <= line <= end:
                found = range(node.lineno, end + 1)
    return found


def digest_of(root: Path, files: Iterable[str]) -> str:
    return hashlib.sha256("\n".join((root / name).read_text() for name in sorted(files)).encode()).hexdigest()[:16]


def recorded(tree: Path, files: Sequence[str], tests: Sequence[str], store: Path, limit: float) -> Reach:
    """What these files of tests execute of the library's files, in the copy at `tree`; from the store if it fits.

    Either way the modules in the copy are compiled then. Raises RuntimeError if a test fails, NoResult after `limit`
    seconds.
    """
    from benchmarks.mutants.runner import run_tests

    digest = digest_of(tree, [*files, *tests])
    if store.exists() and (known := Reach(**json.loads(store.read_text()))).digest == digest:
        run_tests(tree, ["--collect-only", *QUICK, *tests], compiled=True, limit=limit)
        return known
    rooms = sorted({str(Path(file).parent) for file in files})
    options = [*(f"--cov={room}" for room in rooms), "--cov-context=test", "--cov-report="]
    whole = run_tests(tree, [*options, *QUICK, *tests], compiled=True, limit=limit)
    if whole.caught is not None:
        raise RuntimeError(f"{whole.caught} fails without any change")
    reach = Reach(_executed(tree, files), whole.each, digest)
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(asdict(reach)))
    return reach


def _executed(tree: Path, files: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    from coverage import CoverageData

    data = CoverageData(str(tree / ".coverage"))
    data.read()
    found: dict[str, dict[str, list[str]]] = {}
    for file in files:
        contexts = data.contexts_by_lineno(str((tree / file).resolve()))
        tests = {line: sorted({name.rpartition("|")[0] for name in names if name}) for line, names in contexts.items()}
        found[file] = {str(line): names for line, names in sorted(tests.items()) if names}
    return found
