"""Arguments that count steps of the loop: refused by name where it makes fewer of them, unless they mean the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.coverage.build import build
from benchmarks.coverage.inputs import calls_of
from benchmarks.coverage.survey import draw
from ralu_cache import Forecast, accelerate
from ralu_cache.engine.counted import COUNTED, check_counted
from tests import surroundings

one_thread = surroundings.one_thread

STEPS = 6
SKIPPING = Forecast(3, ramp=False)


@cache
def pipeline(name: str) -> Any:
    return build(name)


def call(name: str, **given: Any) -> tuple[Tensor, int]:
    """What a tiny pipeline draws, and how often it calls its denoiser."""
    common = {"prompt": "a red fox", "height": 64, "width": 64, "num_inference_steps": STEPS, "output_type": "latent"}
    common |= {"num_frames": 9, "max_sequence_length": 16} if name.startswith("CogVideoX") else {}
    return draw(pipeline(name), common | calls_of(name) | {"generator": torch.Generator().manual_seed(0)} | given)


EDITED: dict[str, Any] = {"editing_prompt": ["a hat"]}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("StableDiffusionPipelineSafe", {"sld_warmup_steps": 3}, "sld_warmup_steps=3 counts steps.*; give 0, or compute"),
    ("StableDiffusionGLIGENPipeline", {"gligen_scheduled_sampling_beta": 0.3}, "gligen_scheduled_sampling_beta=0.3"),
    ("SemanticStableDiffusionPipeline", EDITED | {"edit_warmup_steps": 4}, "edit_warmup_steps=4 counts steps"),
    ("SemanticStableDiffusionPipeline", EDITED | {"edit_cooldown_steps": [5]}, r"edit_cooldown_steps=\[5\] counts"),
    ("CogVideoXPipeline", {"use_dynamic_cfg": True}, "use_dynamic_cfg=True counts steps.*; give False"),
]
SERVED: list[tuple[str, dict[str, Any]]] = [
    ("StableDiffusionPipelineSafe", {}),  # whose default, 10 steps, is more than there are
    ("StableDiffusionPipelineSafe", {"sld_warmup_steps": 3, "sld_guidance_scale": 0.5}),
    ("StableDiffusionGLIGENPipeline", {}),
    ("SemanticStableDiffusionPipeline", {"edit_warmup_steps": 4}),  # with nothing to edit
    ("SemanticStableDiffusionPipeline", EDITED | {"edit_warmup_steps": [0], "edit_cooldown_steps": STEPS}),
]


@pytest.mark.parametrize(("name", "given", "told"), REFUSED, ids=lambda case: str(case)[:40])
def test_what_counts_steps_is_refused_where_some_are_forecast(name: str, given: dict[str, Any], told: str) -> None:
    with accelerate(pipeline(name), temporal=SKIPPING), pytest.raises(ValueError, match=told):
        call(name, **given)


def test_what_counts_steps_is_served_where_all_are_computed() -> None:
    name, given, _ = REFUSED[0]
    stock, calls = call(name, **given)
    with accelerate(pipeline(name), temporal="forecast:1"):
        picture, made = call(name, **given)
    assert torch.equal(picture, stock) and made == calls


@pytest.mark.parametrize(("name", "given"), SERVED, ids=lambda case: str(case)[:40])
def test_what_means_the_same_in_fewer_steps_is_served(name: str, given: dict[str, Any]) -> None:
    with accelerate(pipeline(name), temporal=SKIPPING):
        picture, made = call(name, **given)
    assert picture.isfinite().all() and made < STEPS


def test_free_init_lays_out_what_the_loop_makes() -> None:
    pipe = pipeline("AnimateDiffPipeline")
    pipe.enable_free_init(num_iters=2)
    told = r"enable_free_init\(\).*pipe.disable_free_init\(\)"
    with accelerate(pipe, temporal=SKIPPING), pytest.raises(ValueError, match=told):
        call("AnimateDiffPipeline", num_frames=2)
    pipe.disable_free_init()


MEANT: list[tuple[str, Any, dict[str, Any], bool]] = [  # with the other arguments: does it mean the same?
    ("control_guidance_start", [0.0, 0.0], {}, True), ("control_guidance_start", [0.0, 0.1], {}, False),
    ("skip_guidance_layers", [], {}, True), ("skip_guidance_layers", [1], {}, False),
    ("guidance_schedule", (7.0,) * 3 + (3.0,) * 3, {}, False), ("guidance_schedule", [3.0] * STEPS, {}, True),
    ("guidance_schedule", torch.tensor([7.0, 3.0]), {}, False), ("guidance_schedule", None, {}, True),
    ("cfg_trunc_ratio", 0.3, {"guidance_scale": 4.0}, False), ("cfg_trunc_ratio", 0.3, {"guidance_scale": 1.0}, True),
    ("edit_warmup_steps", [0, STEPS], EDITED, True), ("edit_warmup_steps", [0, 4], EDITED, False),
    ("max_iter_to_alter", 25, {}, False), ("max_iter_to_alter", 0, {}, True),
    ("thresholds", {0: 0.05, 10: 0.5}, {"max_iter_to_alter": 0}, False), ("thresholds", {0: 0.05}, {}, True),
    ("gligen_scheduled_sampling_beta", 0.3, {"gligen_images": []}, True),
    ("sem_guidance", [torch.ones(2)], {}, False), ("image_latents", torch.ones(2), {}, True),
    ("image_latents", torch.ones(2), {"inpaint_strength": 0.8}, False), ("enforce_inference_steps", True, {}, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "others", "same"), MEANT, ids=lambda case: str(case)[:30])
def test_what_each_may_be(name: str, value: Any, others: dict[str, Any], same: bool) -> None:
    assert COUNTED[name].allows(value, {name: value, **others}, STEPS) == same
    if not same:
        with pytest.raises(ValueError, match=f"{name}=.* counts steps"):
            check_counted(None, {name: value, **others}, STEPS)
