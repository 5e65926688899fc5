"""The embedded model loads and draws; the demo measures in turn and writes what it promises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ralu_cache import demo
from ralu_cache.demo import run_demo
from ralu_cache.demo_plans import DEMO, DEMOS, DemoPlan, demo_prompts, quick
from ralu_cache.models.embedded import EMBEDDED, TINY_FLUX_DEV, TINY_WAN, EmbeddedModel
from ralu_cache.report.report import Report
from ralu_cache.report.videos import BETWEEN, LABEL
from ralu_cache.sweep.comparison import Trial, comparison_row, describe_hardware, markdown_table
from ralu_cache.sweep.methods import parse_method
from tests.sweep_bench import light_flux

SMALL = replace(
    DEMO, prompts=DEMO.prompts[:2], methods=("ralu-7x+taylorseer:2", "+seacache:0.3"), size=64, steps=14, repeats=1
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new"
    run_demo(SMALL, folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take longer than small runs; others look at them."""
    monkeypatch.setattr(demo, "_draw", lambda *_: None)


@pytest.mark.parametrize("model", EMBEDDED.values(), ids=EMBEDDED)
def test_an_embedded_model_draws_at_its_default_size(model: EmbeddedModel) -> None:
    pipe = model.load()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    prompt = f"a red circle{' moving right' if model == TINY_WAN else ''} on a blue background"
    arguments = {**model.arguments, "num_inference_steps": 3, "generator": generator, "output_type": "np"}
    (picture,) = getattr(pipe(prompt, negative_prompt="", **arguments), model.output)
    frames = (9,) if model == TINY_WAN else ()
    assert picture.shape == (*frames, model.size, model.size, 3)
    corner = picture[..., 2:10, 2:10, :]
    assert corner[..., 2].mean() > corner[..., 0].mean() + 0.3, "it is blue"


@pytest.mark.slow
def test_report_holds_every_method(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    assert report["prompts"] == list(SMALL.prompts)
    names = ["full", "ralu-7x", "ralu-7x+taylorseer:2", "+seacache:0.3"]
    assert list(report["methods"])[:4] == names, "the uncached plan of a cached method is run too"
    full, ralu, both, cached, *others = report["methods"].values()
    plain = next(row for row in others if row["flops"] == pytest.approx(ralu["flops"], rel=0.15))
    assert (full["steps"], full["ratio"], full["flop_ratio"], full["psnr"]) == (14, 1.0, 1.0, None)
    assert ralu["steps"] == 10 and [stage["kind"] for stage in ralu["stages"]] == ["coarse", "mixed", "fine"]
    assert ralu["flop_ratio"] == pytest.approx(full["flops"] / ralu["flops"]) and ralu["flop_ratio"] > 1
    assert (both["uncached"], cached["uncached"]) == ("ralu-7x", "full") and "uncached" not in ralu
    for row, plan in ((both, ralu), (cached, full)):
        assert row["flop_ratio_to_uncached"] == pytest.approx(plan["flops"] / row["flops"])
        assert 0 < row["reused_share"] < 1 and row["peak_cached_bytes"] > 0 and row["ratio_to_uncached"] > 0
        assert row["psnr_to_uncached"] > 5 and 0 < row["ssim_to_uncached"] <= 1
    assert cached["psnr_to_uncached"] == cached["psnr"]
    assert both["psnr_to_uncached"] > both["psnr"], "the same plan is nearer than the full run"
    for row in (ralu, both, cached, plain):
        assert 5 < row["psnr"] < 60 and 0 < row["ssim"] < 1 and row["seconds"] > 0


@pytest.mark.slow
def test_pictures_are_written(out: Path) -> None:
    for name in ("grid.png", "regions.png", "timeline.png", "composition.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300 and len(np.unique(np.asarray(picture))) > 50


def test_a_demo_of_videos_has_a_gif_and_film_strips(tmp_path: Path) -> None:
    plan = replace(DEMOS[-1], prompts=DEMOS[-1].prompts[:1], methods=("ralu-7x+taylorseer:2",), steps=6, repeats=1)
    summary = run_demo(plan, tmp_path)
    assert (plan.model, summary["frames"]) == (TINY_WAN, 9)
    columns = len(summary["methods"])
    with Image.open(tmp_path / "videos.gif") as gif:
        assert gif.n_frames == 9 and gif.width == LABEL + columns * (2 * 64 + BETWEEN) - BETWEEN
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == 840, "two inches of labels and four of a strip; a picture has 1.6"
    assert all((tmp_path / name).exists() for name in ("regions.png", "timeline.png", "composition.png"))
    table = (tmp_path / "table.md").read_text()
    assert "64x64 pixels, 9 frames" in table and "over the frames" in table
    assert all(5 < row["psnr"] < 60 for name, row in summary["methods"].items() if name != "full")


def test_videos_are_judged_frame_by_frame() -> None:
    video = np.zeros((2, 3, 4, 4, 3))
    full, fast = (Trial("a", 50, 1.0, seconds=[1.0], pictures={0: video + added}) for added in (0, 0.1))
    counted: list[tuple[int, ...]] = []
    comparison_row(fast, full, {"psnr": lambda a, b: counted.append(a.shape) or [1.0] * len(a)})
    assert counted == [(6, 4, 4, 3)]


@pytest.mark.slow
def test_table_has_a_line_for_every_method(out: Path) -> None:
    table = (out / "table.md").read_text()
    report = json.loads((out / "report.json").read_text())
    assert table == markdown_table(report)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(report["methods"])
    assert {line.count("|") for line in lines} == {11}
    both = lines[2 + list(report["methods"]).index("ralu-7x+taylorseer:2")]
    share = report["methods"]["ralu-7x+taylorseer:2"]["reused_share"]
    assert f"| 10 ({10 * (1 - share):.1f}) |" in both and both.count(" dB |") == 2
    assert "Uncached: the same spatial plan" in table


def test_a_table_without_caching_has_no_columns_for_it() -> None:
    row = comparison_row(Trial("full", 50, 1e9, seconds=[1.0]), Trial("full", 50, 1e9, seconds=[1.0]), {})
    summary = {
        "model": "tiny-flux", "size": 128, "prompts": ["a"], "seeds": [0], "repeats": 1, "versions": {"torch": "2.13"},
        "hardware": {"name": "a processor", "threads": 2}, "methods": {"full": {**row, "psnr": None, "ssim": None}},
    }  # fmt: skip
    table = markdown_table(summary)
    assert "uncached" not in table and {line.count("|") for line in table.splitlines()[:3]} == {9}


def test_runs_are_interleaved_and_pictures_kept_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int]] = []

    def sample(plan: DemoPlan, pipe: Any, trial: Trial, seed: int, bar: Any) -> tuple[np.ndarray, Report | None]:
        order.append((trial.name, seed))
        shown = np.full((2, 4, 4, 3), len(order), dtype=np.float32)
        if not trial.method.parts:
            return shown, None
        return shown, Report("Pipe", trial.name, "none", baseline_steps=50, baseline_flops=50.0)

    class Pipe:
        def set_progress_bar_config(self, disable: bool) -> None: ...

    monkeypatch.setattr(demo, "_sample", sample)
    monkeypatch.setattr(Report, "flops", 12.4)
    trials = demo.measure(replace(SMALL, methods=("ralu-4x", "ralu-7x"), seeds=(3, 5), repeats=2), Pipe())
    names = ["full", "ralu-4x", "ralu-7x", "12 plain steps"]
    assert [trial.name for trial in trials] == names
    assert order[:2] == [("ralu-4x", 3), ("ralu-7x", 3)]  # warm-up
    assert order[2:] == [(name, seed) for _ in range(2) for seed in (3, 5) for name in names]
    assert [len(trial.seconds) for trial in trials] == [4] * 4
    assert [int(shown[0, 0, 0, 0]) for shown in trials[0].pictures.values()] == [3, 7]  # of the first round


def test_the_progress_bar_ends_at_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback is told once for each step that was asked for, which a plan's own are not."""
    bars: list[Any] = []

    class Bar(demo.tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, disable=False)
            bars.append(self)

    monkeypatch.setattr(demo, "tqdm", Bar)
    methods = ("ralu-7x", "+seacache:0.3+guidance=early")
    plan = replace(SMALL, prompts=SMALL.prompts[:1], methods=methods, size=32, steps=6)
    demo.measure(plan, light_flux())
    (bar,) = bars
    assert bar.n == bar.total > 0


@pytest.mark.usefixtures("undrawn")
def test_guidance_is_a_part_of_a_demo(tmp_path: Path) -> None:
    methods = ("ralu-7x", "ralu-7x+taylorseer:2+guidance=early")
    plan = replace(SMALL, prompts=SMALL.prompts[:1], methods=methods, size=32, steps=8)
    rows = run_demo(plan, tmp_path)["methods"]
    assert list(rows)[:4] == ["full", "ralu-7x", "ralu-7x+guidance=early", methods[1]]
    alone, guided, both = (rows[name] for name in list(rows)[1:4])
    assert both["uncached"] == "ralu-7x+guidance=early" and both["flops"] < guided["flops"]
    assert guided["flops"] < 0.8 * alone["flops"]


def test_speed_up_is_the_median_of_the_rounds_own_ratios() -> None:
    """A machine that slows down for a whole round changes nothing."""
    full = Trial("full", 50, 100.0, seconds=[10.0, 30.0, 10.0])
    fast = Trial("fast", 10, 20.0, seconds=[2.0, 6.0, 2.5])
    row = comparison_row(fast, full, {})
    assert (row["ratio"], row["ratio_range"], row["flop_ratio"], row["seconds"]) == (5.0, [4.0, 5.0], 5.0, 2.5)


def test_likeness_is_averaged_over_pictures_and_seeds() -> None:
    full = Trial("full", 50, 100.0, seconds=[1.0], pictures={0: np.zeros((2, 1, 1, 3)), 1: np.ones((2, 1, 1, 3))})
    fast = Trial("fast", 10, 20.0, seconds=[1.0], pictures=full.pictures)
    row = comparison_row(fast, full, {"psnr": lambda a, b: [10.0 + float(b.max()), 20.0 + float(b.max())]})
    assert (row["psnr"], row["psnr_spread"]) == (15.5, pytest.approx(np.std([10, 20, 11, 21])))
    equal = comparison_row(fast, full, {"psnr": lambda a, b: [float("inf")] * 2})
    assert equal["psnr"] is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("steps", 0), ("repeats", -1), ("prompts", ()), ("seeds", ())),
        *(("methods", methods) for methods in ((), ("ralu", "ralu"), ("ralu-4x", "ralu-4x+none"), ("none",))),
    ],
)
def test_a_plan_that_cannot_run_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        replace(SMALL, **{option: value})


@pytest.mark.parametrize("plan", DEMOS, ids=lambda plan: plan.name)
def test_the_quick_demo_shows_each_kind(plan: DemoPlan) -> None:
    spatial, temporal, both = (parse_method(name) for name in quick(plan).methods)
    assert spatial.temporal is None and temporal.spatial is None and both.spatial and both.temporal


def test_each_embedded_model_but_the_distilled_one_has_a_demo_and_its_prompts() -> None:
    own = [plan.model for plan in DEMOS if plan.scheduler is None]
    assert own == [model for model in EMBEDDED.values() if model != TINY_FLUX_DEV]
    assert demo_prompts("tiny-wan") == DEMOS[-1].prompts != DEMO.prompts == demo_prompts("some/checkpoint")


def test_hardware_is_named() -> None:
    hardware = describe_hardware("cpu")
    assert hardware["threads"] == torch.get_num_threads() and hardware["name"]


@pytest.mark.usefixtures("undrawn")
def test_a_demo_on_wans_own_scheduler(tmp_path: Path) -> None:
    methods = ("ralu-8x", "+forecast:3")
    plan = replace(DEMOS[-1], prompts=DEMOS[-1].prompts[:1], methods=methods, size=32, steps=9, repeats=1)
    summary = run_demo(plan, tmp_path)
    assert summary["model"] == "tiny-wan-unipc" and summary["methods"]["ralu-8x"]["flop_ratio"] > 1
    full, forecast = (summary["methods"][name]["flops"] for name in ("full", "+forecast:3"))
    assert forecast == pytest.approx(full * 4 / 9), "by the calls that were made"
    with pytest.raises(ValueError, match="one method with a plan"):
        run_demo(replace(plan, methods=("+forecast:3",)), tmp_path)
    with pytest.raises(ValueError, match="'unipc', got 'euler'"):
        replace(plan, scheduler="euler")
