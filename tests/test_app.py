"""The app without a browser: orders, stopping, what visitors are told, ports, results of a sweep."""

import gc
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ralu_cache.app.form import PARTS, SPEEDUP, Form
from ralu_cache.app.orders import guidance_of, python_lines
from ralu_cache.app.results import find_results, open_front
from ralu_cache.app.serve import free_port
from ralu_cache.app.studio import KEPT, Job, Stopped, Studio, refusals
from ralu_cache.app.visits import Shown, Studios, Visitors, compare
from ralu_cache.generate import Request
from tests.pipelines import make_pipeline
from tests.sweep_results import fabricated, write_results

PROMPT = "a red circle on a blue background"
FORM = Form("tiny-flux", PROMPT, "", 6.0, 0, 6, 32, 32, PARTS, 4, "none", "forecast:2", "none", "none")


@pytest.fixture(scope="module")
def studios() -> Studios:
    return Studios(Request("tiny-flux", [""]))


@pytest.fixture(scope="module")
def studio(studios: Studios) -> Studio:
    return studios["tiny-flux"]


PATIENT = Job(lambda done, total: None, lambda: False)


def shown(studios: Studios, form: Form, visitors: Visitors | None = None) -> list[Shown]:
    return list(compare(studios, visitors or Visitors(), form, "a visitor", lambda what, done, total: None))


def test_the_lines_to_copy_draw_the_same_picture(studio: Studio) -> None:
    order = replace(FORM, seed=7).order(studio)
    names: dict[str, Any] = {}
    exec(python_lines(order, studio.pipe), names)
    mine = studio.accelerated(order, PATIENT)
    assert np.array_equal(np.asarray(names["drawn"]), (mine.picture * 255).round().astype(np.uint8))
    assert names["handle"].report.flops == mine.report.flops and mine.report.caches


def test_the_lines_to_copy_hold_any_text(studio: Studio) -> None:
    text = 'a "quoted" \\ 🦊\nin two lines'
    names: dict[str, Any] = {"pipe": lambda **call: call}
    lines = python_lines(replace(FORM, prompt=text, negative_prompt=text).order(studio), studio.pipe)
    call = lines[lines.index("drawn = pipe(") : lines.index(".images[0]")]
    exec(f"import torch\n{call}", names)
    assert names["drawn"]["prompt"] == names["drawn"]["negative_prompt"] == text


def test_a_comparison_is_that_of_the_stock_pipeline(studio: Studio) -> None:
    order = FORM.order(studio)
    stock = studio.pipe(
        PROMPT, negative_prompt="", true_cfg_scale=6.0, max_sequence_length=16, num_inference_steps=6, width=32,
        height=32, generator=torch.Generator().manual_seed(0), output_type="np",
    ).images[0]  # fmt: skip
    full = studio.full(order, PATIENT)
    assert np.array_equal(full.picture, stock)
    other = replace(order, parts={"temporal": "forecast:3"})
    assert studio.full(other, PATIENT).kept, "another acceleration needs no other full run"
    assert not studio.full(replace(FORM, seed=1).order(studio), PATIENT).kept


def test_only_the_last_full_runs_are_kept(studio: Studio) -> None:
    for seed in range(KEPT + 1):
        studio.full(replace(FORM, seed=seed, steps=1).order(studio), PATIENT)
    assert len(studio._full) == KEPT


@pytest.mark.parametrize("name", ["full", "accelerated"])
def test_cancel_stops_within_a_step_and_frees_what_was_held(studio: Studio, name: str) -> None:
    order = replace(FORM, seed=9, steps=12, temporal="none", spatial="ralu").order(studio)
    calls: list[int] = []
    hook = studio.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    held = []
    for _ in range(3):
        calls.clear()
        try:
            getattr(studio, name)(order, Job(lambda done, total: None, lambda: len(calls) >= 5))
        except Stopped:
            held.append(sum(isinstance(item, torch.Tensor) for item in gc.get_objects()))
    hook.remove()
    assert len(calls) == 5, "in the third step, between its two branches"
    assert held == [held[0]] * 3
    assert studio.accelerated(order, PATIENT).report.completed, "the next visitor is served"


def test_one_who_cancels_in_the_queue_costs_nothing(studios: Studios) -> None:
    visitors = Visitors()
    visitors.arrive("a visitor")
    visitors.stop("a visitor")
    (only,) = shown(studios, FORM, visitors)
    assert "Cancelled" in only.status and only.fast is None
    visitors.arrive("a visitor")
    assert shown(studios, FORM, visitors)[-1].full is not None


def test_a_visitor_sees_both_pictures_and_their_figures(studios: Studios) -> None:
    first, last = shown(studios, FORM)
    assert first.full is None and first.fast is not None and "PSNR" not in first.status
    assert last.full is not None and last.full.size == (512, 512)
    for word in ("faster", "fewer FLOPs", "PSNR", "SSIM"):
        assert word in last.status
    assert "temporal forecast" in last.report and "accelerate(pipe, temporal=" in last.code
    assert last.tokens.width > 200 and last.timeline.width > 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "Width must be from 8 to 512, got 0"),
        ({"height": 100_000}, "Height must be from 8 to 512, got 100000"),
        ({"steps": 0}, "Steps must be from 1 to 200, got 0"),
        ({"width": 40, "spatial": "ralu"}, "40"),
        ({"temporal": "nonsense"}, "nonsense"),
        ({"temporal": "none"}, "every part is"),
        ({"way": SPEEDUP, "speedup": 20}, "at most"),
        ({"seed": 2**70}, "can&#x27;t be drawn|can't be drawn"),
        ({"prompt": "<script>", "temporal": "<b>"}, "&lt;b&gt;"),
    ],
)
def test_what_is_wrong_is_told_in_words(studios: Studios, change: dict[str, Any], words: str) -> None:
    *_, last = shown(studios, replace(FORM, **change))
    assert re.search(words, last.status), last.status
    assert last.fast is None and 'class="notice wrong"' in last.status


def test_what_nobody_foresaw_is_told_too(studios: Studios, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Studio, "accelerated", lambda *_: {}["missing"])
    (only,) = shown(studios, FORM)
    assert "KeyError" in only.status and "server goes on" in only.status


@pytest.mark.parametrize("text", ["", "🦊" * 30, "word " * 2000])
def test_any_text_is_drawn_as_the_pipeline_draws_it(studios: Studios, text: str) -> None:
    assert shown(studios, replace(FORM, prompt=text, steps=2))[-1].full is not None


def test_sizes_that_the_pipeline_rounds_are_told(studios: Studios) -> None:
    last = shown(studios, replace(FORM, width=36, steps=2))[-1]
    assert "drew 32x32 pixels, asked were 36x32" in last.status


def test_guidance_is_that_of_the_demo() -> None:
    assert guidance_of("tiny-flux", None) == ("true_cfg_scale", 6.0)
    assert guidance_of("tiny-sd3", None) == ("guidance_scale", 6.0)
    assert guidance_of("tiny-flux-dev", None) == ("guidance_scale", 3.0)
    assert guidance_of("some/model", make_pipeline()) == ("guidance_scale", 3.5)


def test_what_a_model_can_not_is_known_before_anyone_asks() -> None:
    pipe = make_pipeline()
    assert refusals(pipe) == {}
    pipe.scheduler = diffusers.DDIMScheduler()
    found = refusals(pipe)
    assert {"spatial", "speedup", "solver"} <= found.keys() and "DDIMScheduler" in found["spatial"]


def test_a_model_without_an_adapter_is_served_with_forecasts(tmp_path: Path, studio: Studio) -> None:
    blocks: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (8, 8, 8), "norm_num_groups": 4}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, cross_attention_dim=64, attention_head_dim=4, **blocks,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    types = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**blocks, **types), text_encoder=studio.pipe.text_encoder,
        tokenizer=studio.pipe.tokenizer, unet=unet, scheduler=diffusers.DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(tmp_path)  # fmt: skip
    studios = Studios(Request(str(tmp_path), [""]))
    assert {"spatial", "speedup", "temporal=seacache"} <= studios[str(tmp_path)].refused.keys()
    assert "temporal=forecast" not in studios[str(tmp_path)].refused
    form = replace(FORM, model=str(tmp_path), guidance=None)
    last = shown(studios, form)[-1]
    assert "3 of 6" in last.status and last.full is not None and last.tokens is None
    refusal = shown(studios, replace(form, way=SPEEDUP))[-1]
    assert "needs an adapter" in refusal.status and "forecast" in refusal.status


def test_a_video_is_a_film_beside_stills(studios: Studios) -> None:
    form = replace(FORM, model="tiny-wan", guidance=1.0, steps=2)
    last = shown(studios, form)[-1]
    assert last.film is not None, last.status
    with Image.open(last.film) as film:
        assert film.n_frames == 9
    assert last.full.width == 3 * last.full.height


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) <= port + 99


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Path]:
    yield write_results(tmp_path, fabricated())


def test_results_are_found_and_clicked(sweep: Path) -> None:
    (sweep.parent / "other.jsonl").write_text(json.dumps({"else": 1}) + "\n")
    assert list(find_results([sweep.parent]).values()) == [sweep]
    front = open_front(sweep)
    for place, (x, y) in enumerate(front.points.pixels):
        assert front.points.nearest(x + 1, y - 1) == place
        assert front.names[place] in front.told(place)
    plain, ringed = front.points.draw(None), front.points.draw(0)
    assert plain.size == ringed.size and plain.tobytes() != ringed.tobytes()
