"""What an installation contains, and what importing it costs."""

import json
import re
import subprocess
import sys
import tomllib
from glob import glob
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "accelerate", "adjustText", "cv2", "diffusers", "jinja2", "matplotlib", "ray", "rich", "scipy", "torch",
    "torchmetrics", "torchvision", "transformers", "xformers",
)  # fmt: skip
SETTINGS = "from ralu_cache import RALU, Adaptive, Guidance, SeaCache, TaylorSeer, TeaCache, ToCa"
SECONDS = 0.3  # of processor time, beyond torch
MEASURE = f"""
import json, time
import torch
start = time.process_time()
import ralu_cache
bare = time.process_time()
{SETTINGS}
seconds = [bare - start, time.process_time() - start]
import sys
print(json.dumps({{"seconds": seconds, "loaded": sorted({{name.partition(".")[0] for name in sys.modules}})}}))
"""


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    """Every folder that holds Python files, under the name it is installed by."""
    inside = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "ralu_cache").rglob("*.py")}
    beside = {"ralu_cache." + ".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "adapters").rglob("*.py")}
    return inside | beside


def test_every_package_is_listed(pyproject: dict) -> None:
    assert set(pyproject["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_file_that_is_no_module_is_package_data(pyproject: dict) -> None:
    """A template or a weight that is not listed would be missing from the wheel alone."""
    patterns = pyproject["tool"]["setuptools"]["package-data"]["ralu_cache"]
    listed = {name for pattern in patterns for name in glob(pattern, root_dir=ROOT / "ralu_cache", recursive=True)}
    files = {path.relative_to(ROOT / "ralu_cache") for path in (ROOT / "ralu_cache").rglob("*") if path.is_file()}
    assert not {str(path) for path in files if path.suffix not in (".py", ".pyc")} - listed


def requirements(pyproject: dict) -> set[str]:
    """The names of all that is asked for, our own extras left out."""
    extras = pyproject["project"]["optional-dependencies"].values()
    asked = [*pyproject["project"]["dependencies"], *(name for extra in extras for name in extra)]
    return {re.split(r"[\[<>=]", name)[0].lower() for name in asked} - {"ralu-cache"}


def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.partition("==")[0].lower() for line in lines if line and not line.startswith("#")}


def test_what_is_asked_for_has_a_version(pyproject: dict) -> None:
    assert not requirements(pyproject) - pinned() - {"xformers"}  # it needs a CUDA build of torch


def test_nothing_asks_for_torchvision(pyproject: dict) -> None:
    assert "torchvision" not in requirements(pyproject) | pinned()


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_light() -> None:
    assert not loaded_by("import ralu_cache").intersection(HEAVY)


def test_settings_are_light_and_quick() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert set(HEAVY).intersection(found["loaded"]) == {"torch"}
    assert max(found["seconds"]) < SECONDS, found["seconds"]


def test_the_import_test_sees_what_is_loaded() -> None:
    assert "scipy" in loaded_by("import ralu_cache, scipy")
