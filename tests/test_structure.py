"""The house: which room may import which, what the pure rooms import, and old names of modules that moved."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ralu_cache.moved import MOVED

ROOT = Path(__file__).parents[1]
ROOMS = {  # a room imports those that it names; what only types need counts too
    "plane": (),
    "history": ("plane",),
    "temporal": ("plane", "history"),
    "profiles": ("plane", "history", "temporal"),
    "report": ("plane", "history", "temporal"),
    "adapters": ("plane", "history", "temporal", "report"),
    "engine": ("plane", "history", "temporal", "profiles", "report", "adapters"),
    "api": ("plane", "history", "temporal", "profiles", "report", "adapters", "engine"),
    "models": (),
    "quality": (),
    "sweep": ("plane", "history", "temporal", "report", "api", "models", "quality", "front"),
    "tune": ("plane", "history", "temporal", "report", "api", "models", "quality", "sweep", "profiles", "front"),
    "app": ("plane", "temporal", "report", "api", "models", "quality", "sweep", "front"),
}
FRONT = {"__init__", "__main__", "cli", "demo", "demo_plans", "doctor", "examples", "generate", "info", "moved"}
PURE = ("plane", "history", "temporal")
FRONT_IS_USED = {room: {"demo_plans", "generate"} for room in ("sweep", "tune", "app")}
"""What a command line's room takes of the front: how a model is loaded and called, and the demo's prompts."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    return f"ralu_cache.{name}" if name.startswith("adapters") else name


def room(module: str) -> str:
    """The room of a module of ours; "front" for the thin front."""
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return "front" if first in FRONT or not first else first


def imported(source: str) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if alias.name.islower()}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "ralu_cache"}


def wrong_arrows(module: str, source: str) -> set[str]:
    """The imports of one file that run against the order of the rooms."""
    here = room(module)
    if here == "front":
        return set()
    wrong = set()
    for name in imported(source):
        there = room(name)
        if there == "front" and name.partition(".")[2].partition(".")[0] in FRONT_IS_USED.get(here, set()):
            continue
        known = ROOMS[here] if there != "front" or name != "ralu_cache" else (*ROOMS[here], "front")
        if there not in (here, *known) or (there == "front" and name != "ralu_cache"):
            wrong.add(f"{module} -> {name}")
    return wrong


def sources() -> dict[str, str]:
    files = [*(ROOT / "ralu_cache").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    return {module_name(path): path.read_text() for path in files}


def test_every_module_lies_in_a_room() -> None:
    assert {room(module) for module in sources()} == {*ROOMS, "front"}


def test_arrows_run_one_way() -> None:
    assert not set().union(*(wrong_arrows(module, source) for module, source in sources().items()))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("ralu_cache.plane.canvas", "from ralu_cache.history.feature import Feature"),
        ("ralu_cache.history.ledger", "import ralu_cache.engine.run"),
        ("ralu_cache.temporal.toca", "def f():\n    from ralu_cache.report.record import Report"),
        ("ralu_cache.engine.run", "if TYPE_CHECKING:\n    from ralu_cache.api import accelerate"),
        ("ralu_cache.adapters.flux", "from ralu_cache.engine.root import RootHook"),
        ("ralu_cache.quality.base", "from ralu_cache.sweep.records import Record"),
        ("ralu_cache.sweep.engine", "from ralu_cache.cli import main"),
        ("ralu_cache.models.embedded", "from ralu_cache.api import accelerate"),
        ("ralu_cache.plane.canvas", "from ralu_cache import engine"),
    ],
)
def test_a_planted_wrong_import_is_found(module: str, line: str) -> None:
    assert wrong_arrows(module, line)


def circles(graph: dict[str, set[str]]) -> set[str]:
    """The modules that reach themselves."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = [*graph[start]]
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += graph.get(name, ())
        return found

    return {name for name in graph if name in reached(name)}


def test_no_module_imports_itself_by_a_detour() -> None:
    found = sources()
    graph = {module: (imported(source) & found.keys()) - {module} for module, source in found.items()}
    assert not circles(graph)


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {"a", "b", "c"}


def runs(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)


REFUSING = """
import sys
class Refuse:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("diffusers", "transformers", "matplotlib"):
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Refuse())
import importlib, pkgutil, ralu_cache
"""


def test_pure_rooms_import_without_diffusers_transformers_and_matplotlib() -> None:
    code = REFUSING + (
        f"for room in {PURE!r}:\n"
        "    package = importlib.import_module(f'ralu_cache.{room}')\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
    )
    result = runs(code)
    assert result.returncode == 0, result.stderr


def test_an_import_of_diffusers_would_be_seen() -> None:
    assert "imports diffusers" in runs(REFUSING + "importlib.import_module('ralu_cache.engine.scheduler').diffusers\n"
                                       "import diffusers").stderr  # fmt: skip


def test_rooms_say_what_they_hold_and_what_they_must_not_import() -> None:
    for name in ROOMS.keys() - {"api", "adapters"}:
        text = ast.get_docstring(ast.parse((ROOT / "ralu_cache" / name / "__init__.py").read_text()))
        assert text is not None and len(text.splitlines()) >= 3, name
        assert "mports" in text or "mported" in text, f"{name} does not say what it must not import"


@pytest.mark.slow
def test_old_names_work_and_tell_the_new_one() -> None:
    code = (
        "import importlib, sys, warnings\n"
        "warnings.simplefilter('always')\n"
        "from ralu_cache.moved import MOVED\n"
        "for old, new in MOVED.items():\n"
        "    with warnings.catch_warnings(record=True) as said:\n"
        "        warnings.simplefilter('always')\n"
        "        module = importlib.import_module('ralu_cache.' + old)\n"
        "    assert module is importlib.import_module('ralu_cache.' + new), old\n"
        "    assert module.__name__ == module.__spec__.name == 'ralu_cache.' + new, (old, module.__spec__)\n"
        "    assert any('is now ralu_cache.' + new in str(w.message) for w in said), old\n"
        "from ralu_cache.report import Report\n"
    )
    result = runs(code)
    assert result.returncode == 0, result.stderr


def test_an_old_name_is_none_of_a_room_today() -> None:
    taken = {module.removeprefix("ralu_cache.") for module in sources()}
    assert not MOVED.keys() & taken
    assert MOVED.keys() and set(MOVED.values()) <= taken
