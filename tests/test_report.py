"""The report's sums, its text, its JSON and its figures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ralu_cache.report.figures import draw_regions
from ralu_cache.report.record import finite, stage_kind
from ralu_cache.report.report import Report
from ralu_cache.report.steps import BranchRecord, StepRecord
from ralu_cache.report.text import readable_bytes, readable_flops
from ralu_cache.sweep.comparison import Trial, comparison_row
from ralu_cache.sweep.methods import Method

PLAN = ((2, 64), (3, 118), (5, 256))  # steps and tokens of the coarse, mixed and fine stage on a 16x16 grid


@pytest.fixture
def report() -> Report:
    record = Report("FluxPipeline", "ralu-7x", "none", (16, 16), 2, completed=True)
    record.baseline_steps, record.baseline_flops = 50, 50e9
    for stage, (steps, tokens) in enumerate(PLAN):
        for step in range(steps):
            sigma, sigma_next = (1 - (step + k) / (steps + (stage < 2)) for k in (0, 1))
            record.steps.append(
                StepRecord(len(record.steps), stage, sigma, sigma_next, tokens, 2, 1e9, 0.25, samples=4)
            )
    mask = np.zeros((2, 8, 8), dtype=bool)
    mask[0, 0, :6] = mask[1, 2:4, :3] = True
    record.regions.append(mask)
    record.notices.append("num_inference_steps=50 is replaced by the plan's 10 steps")
    return record


@pytest.fixture
def cached(report: Report) -> Report:
    """The same run with a policy: every second step reused in branch 1, in branch 2 by the first sample alone."""
    report.temporal = "seacache"
    for i, step in enumerate(report.steps):
        tokens, odd = 2 * step.tokens, i % 2 == 1
        branches = [
            BranchRecord(
                (odd, odd and number == 0), (float("nan"), 0.1 * i), 0.3, 0, tokens // 4 if i == 5 else 0,
                tokens - (tokens // 4 if i == 5 else 0), 2**20, total=(0.1, 0.2), flops=5e8,
                found=(tokens, 0, 0) if i in (0, 2) else (0, 0, tokens), saved_flops=(2 - number) * 1e8 * odd,
            )
            for number in (0, 1)
        ]  # fmt: skip
        saved = sum(branch.saved_flops for branch in branches)
        report.steps[i] = dataclasses.replace(step, branches=tuple(branches), saved_flops=saved)
    return report


@pytest.fixture
def sparse(cached: Report) -> Report:
    """The same, but what was reused in the fine stage was computed in part: a quarter of the tokens."""
    for i, step in list(enumerate(cached.steps))[5:]:
        branches = tuple(
            dataclasses.replace(
                branch, reused=(False, False), fresh=tuple(step.tokens // 4 * reused for reused in branch.reused)
            )
            for branch in step.branches
        )
        cached.steps[i] = dataclasses.replace(step, branches=branches)
    return cached


def test_what_was_computed_in_part_is_counted_apart(sparse: Report, tmp_path: Path) -> None:
    assert [(stage.computed, stage.partial, stage.reused) for stage in sparse.stages] == [
        (5, 0, 3), (9, 0, 3), (11, 9, 0),
    ]  # fmt: skip
    assert [(part.computed, part.partial, part.reused) for part in sparse.stages[2].branches] == [(4, 6, 0), (7, 3, 0)]
    step = sparse.steps[5]
    assert (step.computed, step.partial, step.reused) == (1, 3, 0)
    assert (step.recomputed_share, step.reused_share) == (3 / 4 / 4, 9 / 4 / 4)
    text = str(sparse).splitlines()
    assert text[3].split()[4:8] == ["calls", "computed", "partial", "reused"]
    (total,) = (line for line in text if line.startswith("total"))
    assert total.split()[:6] == ["total", "10", "20", "6.2", "2.2", "1.5"]
    assert len({len(line) for line in text[3:8] if "branch" not in line}) == 1
    sparse.save(tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    assert [stage["partial"] for stage in data["stages"]] == [0, 0, 9]
    assert data["steps"][5]["branches"][0]["fresh"] == [64, 64]


def test_a_run_without_partial_samples_has_no_column_for_them(cached: Report) -> None:
    assert "partial" not in str(cached) and cached.caches and not cached.sparse


def test_the_share_reused_is_one_of_tokens(cached: Report) -> None:
    """As a demo's table has it: the mean over samples and calls."""
    full = Trial("full", 10, 1.0, seconds=[1.0])
    trial = Trial("fast", 10, 1.0, Method("ralu-4x", "seacache"), seconds=[1.0], reports={0: cached})
    assert comparison_row(trial, full, {}, full)["reused_share"] == pytest.approx(15 / 40)
    fine = cached.steps[5]
    calls = tuple(dataclasses.replace(call, reused=(False, True), fresh=(192, 0)) for call in fine.branches)
    cached.steps[:] = [dataclasses.replace(fine, branches=calls)]
    assert comparison_row(trial, full, {}, full)["reused_share"] == pytest.approx((0.25 + 1) / 2)


def test_reuse_is_added_up_by_stage_and_branch(cached: Report) -> None:
    assert [(stage.computed, stage.reused) for stage in cached.stages] == [(5, 3), (9, 3), (11, 9)]
    fine = cached.stages[2].branches
    assert [(branch.computed, branch.reused) for branch in fine] == [(4, 6), (7, 3)]
    assert [branch.saved_flops for branch in fine] == [pytest.approx(6e8), pytest.approx(3e8)]
    assert cached.temporal_saved_flops == pytest.approx(15e8)
    assert cached.spatial_saved_flops == pytest.approx(50e9 - 10e9 - 1.5e9)
    assert cached.peak_cached_bytes == 2 * 2**20


def test_text_of_a_cached_run_names_what_each_part_saved(cached: Report) -> None:
    text = str(cached)
    saved = "FLOPs saved: 38.50 G by spatial (4.35x), 1.50 G by temporal (1.15x)"
    for part in ("computed", "reused", "branch 2", saved, "cache: at most 2.0 MiB"):
        assert part in text
    (total,) = (line for line in text.splitlines() if line.startswith("total"))
    assert total.split()[:5] == ["total", "10", "20", "6.2", "3.8"]
    cached.completed = False
    assert "by spatial" not in str(cached) and "1.50 G by temporal" in str(cached)


def test_json_knows_no_nan(cached: Report, tmp_path: Path) -> None:
    cached.save(tmp_path / "run.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    branch = data["steps"][3]["branches"][1]
    assert branch["distance"] == [None, pytest.approx(0.3)] and branch["reused"] == [True, False]
    assert data["stages"][2]["branches"][0]["reused"] == 6
    assert data["temporal_saved_flops"] == pytest.approx(1.5e9)
    assert finite({"a": (float("inf"), 1, "b")}) == {"a": [None, 1, "b"]}


@pytest.mark.parametrize(("size", "text"), [(512, "0.5 KiB"), (2.5 * 2**20, "2.5 MiB"), (3 * 2**30, "3.0 GiB")])
def test_readable_bytes(size: float, text: str) -> None:
    assert readable_bytes(size) == text


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


@pytest.mark.parametrize(("pictures", "shown"), [(None, 0), ("one", 1), ("list", 2), ("batch", 2)])
def test_plot_shows_the_pictures(report: Report, tmp_path: Path, pictures: str | None, shown: int) -> None:
    pink = np.full((64, 64, 3), (1.0, 0.0, 1.0))
    image = {"one": Image.new("RGB", (64, 64), "#ff00ff"), "list": [pink, pink], "batch": np.stack([pink, pink])}
    report.plot(tmp_path / "run.png", image.get(pictures or ""))
    with Image.open(tmp_path / "run.png") as picture:
        assert picture.width > 800 and picture.height > 500
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels)) > 50
    kept = (pixels == (255, 0, 255)).all(-1).any(0).astype(int)  # refined, so not faded; a run of columns a picture
    assert (np.diff(kept, prepend=0) == 1).sum() == shown


def test_plot_refuses_what_is_no_picture(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PIL image or a \(Y, X, 3\) array, got shape \(4, 4\)"):
        report.plot(tmp_path / "run.png", np.zeros((4, 4)))


def test_region_is_drawn_where_the_mask_is(report: Report) -> None:
    axis = Figure().subplots()
    draw_regions(axis, np.zeros((64, 64, 3)), [report.regions[0][0]])
    shown = np.asarray(axis.images[0].get_array())
    assert not shown[:8, :48].any()  # the refined cells keep their colour
    assert (shown[8:] > 0.5).all() and (shown[:8, 48:] > 0.5).all()  # the others are faded
    lines = np.concatenate(axis.collections[0].get_segments())
    assert {tuple(point) for point in lines} >= {(0, 0), (48, 0), (48, 8), (0, 8)}
