"""docs/tour.ipynb: short, committed with what it draws, and it runs."""

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
run_tour = pytest.importorskip("docs.run_tour")


QUICK = {
    "num_inference_steps=28": "num_inference_steps=6", '"num_inference_steps": 16': '"num_inference_steps": 6',
    "trials=8": "trials=2",
}  # fmt: skip


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_ten_cells_that_show_what_they_drew() -> None:
    cells = code_cells(nbformat.read(run_tour.TOUR, as_version=4))
    assert len(cells) == 10
    shown = [kind for cell in cells for output in cell.outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= 4 and shown.count("text/html") >= 2
    assert run_tour.TOUR.stat().st_size < 300_000


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    *cells, last = code_cells(run_tour.executed(tmp_path, QUICK))
    report = next(cell for cell in cells if cell.source == "print(handle.report)")
    assert "coarse" in "".join(output.get("text", "") for output in report.outputs)
    assert (tmp_path / "out" / "tour" / "profile.json").exists()
    assert last.outputs[-1].data["text/plain"] == "True", "off is stock"
    assert (tmp_path / "out" / "tour" / "tokens.png").exists()
