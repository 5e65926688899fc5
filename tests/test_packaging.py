"""What an installation contains, and what importing it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("matplotlib", "adjustText", "rich", "scipy", "cv2", "torchvision", "xformers", "ray", "torchmetrics")


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


def test_files_beside_the_modules_are_package_data(pyproject: dict) -> None:
    """Templates; the models' folders are listed as a whole."""
    data = pyproject["tool"]["setuptools"]["package-data"]
    found = [path.relative_to(ROOT) for path in (ROOT / "ralu_cache").rglob("*.j2")]
    assert found
    for path in found:
        assert path.name in data[".".join(path.parent.parts)]


def test_nothing_asks_for_torchvision(pyproject: dict) -> None:
    extras = pyproject["project"]["optional-dependencies"].values()
    wanted = [*pyproject["project"]["dependencies"], *(name for extra in extras for name in extra)]
    assert not [name for name in wanted if "torchvision" in name]
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in pinned if "torchvision" in line]


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_light() -> None:
    assert not loaded_by("import ralu_cache").intersection(HEAVY)


def test_the_import_test_sees_what_is_loaded() -> None:
    assert "scipy" in loaded_by("import ralu_cache, scipy")
