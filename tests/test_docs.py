"""The documentation site: its lines run, its commands parse, every page and public name is there."""

import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FluxPipeline

import ralu_cache
from ralu_cache import cli
from ralu_cache.temporal import _POLICIES
from tests.sweep_bench import light_flux

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOT_RUN = "<!-- not run: "
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
BLOCK = re.compile(r"(<!-- not run: [^\n]*\n)?```python\n(.*?)```", re.DOTALL)
REFERENCE = (DOCS / "reference.md").read_text()


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Draws small pictures."""
    pipe = light_flux()
    pipe.default_sample_size = 8
    return pipe


@pytest.fixture
def registries() -> Iterator[None]:
    from ralu_cache.plane.regions import _SCORERS

    kept = dict(_POLICIES), dict(_SCORERS)
    yield
    for registry, before in zip((_POLICIES, _SCORERS), kept, strict=True):
        registry.clear()
        registry.update(before)


def with_lines() -> list[str]:
    """The pages that have some."""
    return [name for name in PAGES if BLOCK.search((DOCS / name).read_text())]


@pytest.mark.parametrize("page", with_lines())
def test_the_lines_of_a_page_run_from_top_to_bottom(
    page: str, pipe: Any, registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = FluxPipeline.__call__.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(call, "__defaults__", tuple(6 if value == 28 else value for value in call.__defaults__))
    given = {"pipe": pipe, "prompt": "a red fox", "torch": torch, "accelerate": ralu_cache.accelerate}
    names: dict[str, Any] = {**given, "__name__": "docs"}
    try:
        for reason, lines in BLOCK.findall((DOCS / page).read_text()):
            code = compile(lines.replace("(...)", "(None)"), f"{page}: {lines[:40]!r}", "exec")
            if not reason:
                exec(code, names)
    finally:
        ralu_cache.accelerate(pipe).disable()


def test_every_public_name_is_in_the_reference_and_documented() -> None:
    for name in ralu_cache.__all__:
        value = getattr(ralu_cache, name)
        assert f"::: {value.__module__}.{name}\n" in REFERENCE, name
        assert value.__doc__ and len(value.__doc__) > 25, name
    for name in re.findall(r"^::: (\S+)$", REFERENCE, flags=re.MULTILINE):
        module, _, member = name.rpartition(".")
        value = getattr(importlib.import_module(module), member)
        undocumented = [
            part for part, kind in vars(value).items()
            if callable(kind) and not part.startswith("_") and not inspect.getdoc(getattr(value, part))
        ] if isinstance(value, type) else []  # fmt: skip
        assert not undocumented, (name, undocumented)


def test_the_commands_of_the_pages_parse() -> None:
    lines = [line for page in PAGES for line in re.findall(r"^ralu-cache (?!--)(.+)$", (DOCS / page).read_text(), re.M)]
    assert len(lines) >= 5
    for line in lines:
        cli._parser().parse_args(shlex.split(line))


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        inside = part.values() if isinstance(part, dict) else part
        return [page for one in inside for page in pages(one)]

    made = {"adapters.md", "contributing.md", "changelog.md"}
    assert set(pages(config["nav"])) == {*PAGES, *made}


def test_the_command_line_page_names_every_command() -> None:
    text = (DOCS / "command-line.md").read_text()
    for command in re.findall(r"^    ([a-z]+)", cli._parser().format_help(), flags=re.MULTILINE):
        assert f"| `ralu-cache {command}` |" in text


def test_docstrings_become_lists() -> None:
    pytest.importorskip("griffe")
    from docs.docstrings import readable

    text = "First line.\n\nImportant\n    one: a\n        thing.\n    two, three: others\nRaises.\n\nhow: what\n  more."
    assert readable(text) == (
        "First line.\n\n\n**Important**\n\n\n- **one**: a thing.\n- **two, three**: others\n\nRaises.\n\n\n"
        "- **how**: what more."
    )
