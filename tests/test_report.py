"""The report's sums, its text, its JSON and its figures."""

import builtins
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ralu_cache.report import Report, StepRecord, readable_flops, stage_kind

PLAN = ((2, 64), (3, 118), (5, 256))  # steps and tokens of the coarse, mixed and fine stage on a 16x16 grid


@pytest.fixture
def report() -> Report:
    record = Report("FluxPipeline", "ralu-7x", "none", (16, 16), 2, completed=True)
    record.baseline_steps, record.baseline_flops = 50, 50e9
    for stage, (steps, tokens) in enumerate(PLAN):
        for step in range(steps):
            sigma, sigma_next = (1 - (step + k) / (steps + (stage < 2)) for k in (0, 1))
            record.steps.append(StepRecord(len(record.steps), stage, sigma, sigma_next, tokens, 2, 1e9, 0.25))
    mask = np.zeros((2, 8, 8), dtype=bool)
    mask[0, 0, :6] = mask[1, 2:4, :3] = True
    record.regions.append(mask)
    record.notices.append("num_inference_steps=50 is replaced by the plan's 10 steps")
    return record


def test_stages_are_the_steps_added_up(report: Report) -> None:
    assert [(stage.kind, stage.steps, stage.tokens) for stage in report.stages] == [
        ("coarse", 2, 64),
        ("mixed", 3, 118),
        ("fine", 5, 256),
    ]
    assert [stage.calls for stage in report.stages] == [4, 6, 10]
    assert (report.stages[0].sigma_start, report.stages[0].sigma_end) == (1.0, pytest.approx(1 / 3))
    assert report.stages[2].sigma_end == 0.0
    assert report.stages[1].seconds == pytest.approx(0.75)
    assert (report.flops, report.seconds, report.flop_ratio) == (10e9, 2.5, 5.0)


def test_an_empty_report_is_whole() -> None:
    empty = Report("FluxPipeline", "ralu-4x", "none")
    assert (empty.stages, empty.flops, empty.flop_ratio) == ([], 0, 1.0)
    assert "did not finish" in str(empty)


def test_stage_kind() -> None:
    assert [stage_kind(n, (6, 10)) for n in (60, 15, 33)] == ["fine", "coarse", "mixed"]


def test_text_names_stages_cost_and_notices(report: Report) -> None:
    text = str(report)
    for part in ("FluxPipeline", "ralu-7x", "coarse", "mixed", "fine", "5.00x", "10.00 G", "mixed stage 1: 9%"):
        assert part in text
    assert text.endswith("notice: num_inference_steps=50 is replaced by the plan's 10 steps")
    assert "did not finish" not in text
    assert len({len(line) for line in text.splitlines()[3:8]}) == 1  # the table's lines are equally long


@pytest.mark.parametrize(("flops", "text"), [(2.5e6, "2.50 M"), (1e9, "1.00 G"), (74.4e12, "74.40 T")])
def test_readable_flops(flops: float, text: str) -> None:
    assert readable_flops(flops) == text


def test_saved_json_holds_everything(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "new" / "run.json")
    data = json.loads((tmp_path / "new" / "run.json").read_text())
    assert data["flop_ratio"] == 5.0
    assert data["size"] == [16, 16]
    assert len(data["steps"]) == 10
    assert [stage["kind"] for stage in data["stages"]] == ["coarse", "mixed", "fine"]
    assert data["regions"][0][0] == ["11111100"] + ["00000000"] * 7
    assert data["regions"][0][1][2:4] == ["11100000"] * 2


@pytest.mark.parametrize("pictures", [None, "one", "list", "batch"])
def test_plot_writes_a_picture(report: Report, tmp_path: Path, pictures: str | None) -> None:
    pytest.importorskip("matplotlib")
    array = np.full((64, 64, 3), 0.5)
    image = {"one": Image.new("RGB", (64, 64)), "list": [array, array], "batch": np.stack([array, array])}
    report.plot(tmp_path / "run.png", image.get(pictures or ""))
    with Image.open(tmp_path / "run.png") as picture:
        assert picture.width > 800 and picture.height > 500
        assert len(np.unique(np.asarray(picture))) > 50


def test_plot_refuses_what_is_no_picture(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"PIL image or a \(Y, X, 3\) array, got shape \(4, 4\)"):
        report.plot(tmp_path / "run.png", np.zeros((4, 4)))


def test_region_is_drawn_where_the_mask_is(report: Report) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from ralu_cache.plots import draw_regions

    axis = Figure().subplots()
    draw_regions(axis, np.zeros((64, 64, 3)), [report.regions[0][0]])
    shown = np.asarray(axis.images[0].get_array())
    assert not shown[:8, :48].any()  # the refined cells keep their colour
    assert (shown[8:] > 0.5).all() and (shown[:8, 48:] > 0.5).all()  # the others are faded
    lines = np.concatenate(axis.collections[0].get_segments())
    assert {tuple(point) for point in lines} >= {(0, 0), (48, 0), (48, 8), (0, 8)}


def test_missing_matplotlib_is_named(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = builtins.__import__

    def without_matplotlib(name: str, *args: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return stock(name, *args)

    monkeypatch.delitem(sys.modules, "ralu_cache.plots", raising=False)
    monkeypatch.delattr("ralu_cache.plots", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"ralu-cache\[plot\]"):
        report.plot(tmp_path / "run.png")
