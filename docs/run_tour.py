"""Runs docs/tour.ipynb in place, so that the committed notebook shows what it draws: `python docs/run_tour.py`."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs this, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def executed(folder: Path, instead: Mapping[str, str] | None = None) -> Any:
    """The notebook with its outputs; raises nbclient's CellExecutionError for a cell that fails.

    instead: what stands for what in its lines, to be done sooner.
    """
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in notebook.cells:
        for old, new in (instead or {}).items():
            cell.source = cell.source.replace(old, new)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    client = NotebookClient(
        notebook, timeout=300, kernel_manager_class=ThisPython, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


def without_noise(notebook: Any) -> Any:
    """Without times, counters and what libraries print to standard error: only what a reader looks at."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop("image/jpeg", None)  # pictures are there as PNG, too
                if "image/png" in data:
                    data["image/png"] = smaller(data["image/png"])
    return notebook


def smaller(png: str) -> str:
    """A picture in base64 with a palette of 128 colours."""
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    nbformat.write(without_noise(executed(ROOT)), TOUR)
