"""The figure of a run shows what the report says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ralu_cache.report import timeline
from ralu_cache.report.report import Report
from ralu_cache.report.steps import BranchRecord, StepRecord

NAN = float("nan")


def branch(tokens: int, reused: tuple[bool, bool], inherited: int = 0, total: tuple[float, ...] = ()) -> BranchRecord:
    return BranchRecord(
        reused, total or (NAN, NAN), 0.4 if total else NAN, 0, inherited, 2 * tokens - inherited, 100,
        found=(tokens, tokens - inherited, inherited), total=total,
    )  # fmt: skip


@pytest.fixture
def report() -> Report:
    """Coarse steps of 64 tokens, fine ones of 256; two samples, two branches."""
    record = Report("FluxPipeline", "ralu-4x", "seacache", (16, 16), 2, completed=True, baseline_steps=4)
    reuse = ((False, False), (True, False), (True, True), (False, False))
    for index, reused in enumerate(reuse):
        tokens = 64 if index < 2 else 256
        calls = tuple(branch(tokens, reused, 128 * (index == 2), (0.1 * index, 0.2 * index)) for _ in range(2))
        levels = (1 - index / 4, 1 - (index + 1) / 4)
        record.steps.append(StepRecord(index, index // 2, *levels, tokens, 2, 1e9, 0.1, branches=calls, samples=4))
    return record


@pytest.fixture
def sparse(report: Report) -> Report:
    """The same with a quarter of the second sample's tokens computed in the third step, both samples' in the fourth."""
    for index, fresh, reused in ((2, (0, 64), (True, False)), (3, (128, 64), (False, False))):
        step = report.steps[index]
        calls = tuple(dataclasses.replace(call, reused=reused, fresh=fresh) for call in step.branches)
        report.steps[index] = dataclasses.replace(step, branches=calls)
    return report


def bars(axis: Axes) -> list[list[tuple[float, float]]]:
    """(bottom, height) of each step, a list for each colour."""
    return [[(bar.get_y(), bar.get_height()) for bar in group] for group in axis.containers]


def test_shares_of_work_are_those_of_samples_and_branches(report: Report) -> None:
    shares = [timeline.work(step) for step in report.steps]
    assert shares == [(1, 0, 0, 0), (0.5, 0, 0.5, 0), (0, 0, 0.75, 0.25), (1, 0, 0, 0)]
    assert timeline.work(dataclasses.replace(report.steps[0], branches=())) == (1, 0, 0, 0)


def test_shares_of_work_count_the_tokens_of_samples_computed_in_part(sparse: Report) -> None:
    shares = [timeline.work(step) for step in sparse.steps]
    assert shares[2:] == [(0, 0.125, 0.625, 0.25), (0, 0.375, 0.625, 0)]
    assert all(sum(share) == 1 for share in shares)


def test_bars_are_as_high_as_the_layout_has_tokens(report: Report) -> None:
    axis = Figure().subplots()
    timeline.draw_work(axis, report)
    computed, rows, reused, inherited = bars(axis)
    assert computed == [(0, 64), (0, 32), (0, 0), (0, 256)]
    assert [height for _, height in rows] == [0, 0, 0, 0]
    assert reused == [(64, 0), (32, 32), (0, 192), (256, 0)]
    assert inherited == [(64, 0), (64, 0), (192, 64), (256, 0)]
    assert [text.get_text() for text in axis.texts] == ["25% reused", "50% reused"]


def test_marks_are_what_the_calls_found(report: Report) -> None:
    axis = Figure().subplots()
    timeline.draw_marks(axis, report)
    valid, inherited, empty = (np.array([height for _, height in group]) for group in bars(axis))
    assert np.allclose(valid + inherited + empty, 1)
    assert np.allclose(valid, [0, 0, 0.25, 0]) and np.allclose(empty, 0.5)


def test_distances_show_samples_and_threshold(report: Report) -> None:
    axis = Figure().subplots()
    timeline.draw_distances(axis, report, 1)
    points = [line for line in axis.lines if line.get_marker() == "o"]
    filled = sum(np.isfinite(line.get_ydata()).sum() for line in points if line.get_markerfacecolor() != "white")
    hollow = sum(np.isfinite(line.get_ydata()).sum() for line in points if line.get_markerfacecolor() == "white")
    assert (filled, hollow) == (5, 3)
    assert sum(list(line.get_ydata()) == [0.4, 0.4] for line in axis.lines) == 4


def test_panels_are_those_that_have_something_to_show(report: Report) -> None:
    stock = dataclasses.replace(report, steps=[dataclasses.replace(step, branches=()) for step in report.steps])
    forecast = [dataclasses.replace(step, samples=0, forecast=4) for step in stock.steps[1:2]]
    for steps, panels in ((report.steps, 5), (stock.steps, 2), ([stock.steps[0], *forecast], 2)):
        figure = Figure()
        timeline.draw_runs(figure, {"run": dataclasses.replace(report, steps=steps)})
        assert len(figure.axes) == panels
    assert timeline.work(forecast[0]) == (0, 0, 1, 0)
    assert "reused" in [text.get_text() for text in figure.axes[1].get_legend().get_texts()]


def test_a_policy_without_distances_needs_no_panel(report: Report) -> None:
    for index, step in enumerate(report.steps):
        calls = tuple(branch(step.tokens, call.reused) for call in step.branches)
        report.steps[index] = dataclasses.replace(step, branches=calls)
    figure = Figure()
    timeline.draw_runs(figure, {"run": report})
    assert len(figure.axes) == 3
    axis = Figure().subplots()
    timeline.draw_distances(axis, report, 0)
    assert "no distance" in axis.texts[0].get_text()


def test_recomputed_rows_stand_between_what_was_computed_and_what_was_reused(sparse: Report) -> None:
    axis = Figure().subplots()
    timeline.draw_work(axis, sparse)
    _, rows, reused, _ = bars(axis)
    assert rows[2:] == [(0, 32), (0, 96)] and reused[2:] == [(32, 160), (96, 160)]
    assert [text.get_text() for text in axis.texts] == ["25% reused", "75% reused"]


def test_the_legend_names_recomputed_rows_where_there_are_any(report: Report, sparse: Report) -> None:
    plain = dataclasses.replace(report, steps=report.steps[:2])
    for shown, expected in (({"run": plain}, False), ({"run": plain, "other": sparse}, True)):
        figure = Figure()
        timeline.draw_runs(figure, shown)
        named = [text.get_text() for axis in figure.axes if axis.get_legend() for text in axis.get_legend().get_texts()]
        assert (timeline.ROWS in named) is expected


def shows_all_work(path: Path) -> bool:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    colours = [tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for code in timeline.WORK.values()]
    return all((pixels == colour).all(-1).sum() > 200 for colour in colours)


@pytest.mark.parametrize("pictures", [None, [np.full((64, 64, 3), 0.5)] * 2])
def test_a_cached_run_plots_its_composition(sparse: Report, tmp_path: Path, pictures: list[np.ndarray] | None) -> None:
    sparse.plot(tmp_path / "new" / "run.png", pictures)
    assert shows_all_work(tmp_path / "new" / "run.png")


def test_runs_are_plotted_together(sparse: Report, tmp_path: Path) -> None:
    timeline.save_runs({"one": sparse, "two": sparse}, tmp_path / "two.png")
    assert shows_all_work(tmp_path / "two.png")
