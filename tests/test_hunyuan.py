"""What is HunyuanVideo 1.5's own: its guider, padded text of two encoders, the picture to animate."""

from functools import partial
from typing import Any

import diffusers
import PIL.Image
import pytest
import torch
from diffusers import ClassifierFreeGuidance

from ralu_cache import RALU, Adaptive, Guidance, ToCa, accelerate
from tests.adapter_conformance import (
    COUNTED,
    Family,
    check_a_permuted_ribbon_is_the_stock_forward,
    check_flops_are_those_that_a_counter_counts,
)
from tests.pipelines_hunyuan import (
    HunyuanVideo15ImageToVideoPipeline,
    hunyuan_videos,
    make_hunyuan_pipeline,
)
from tests.surroundings import recorded


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_hunyuan_pipeline()


def draw(pipe: Any, samples: Any = (0, 1), **given: Any) -> torch.Tensor:
    video: torch.Tensor = pipe(**hunyuan_videos(samples, **given), return_dict=False)[0]
    return video


def test_a_scale_for_each_stage_is_in_terms_of_the_guiders(pipe: Any) -> None:
    weak = draw(pipe, guidance_scale=1.5)
    with accelerate(pipe, guidance=Guidance(scale=1.5)):
        torch.testing.assert_close(draw(pipe, guidance_scale=4.0), weak, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"spatial": RALU(split=(3, 3, 3))}, {"temporal": "forecast:2"}, {"temporal": "taylorseer:2"}], ids=str
)
def test_an_interval_of_the_guider_means_noise_levels(options: dict[str, Any]) -> None:
    """Which steps are guided, by how often the model is called at their level; the user's own is not told."""
    pipe = make_hunyuan_pipeline(diffusers.HunyuanVideo15Pipeline)
    pipe.vision_num_semantic_tokens = 3
    pipe.guider = ClassifierFreeGuidance(2.5, start=0.3, stop=0.7)

    def guided() -> dict[float, bool]:
        with recorded(pipe.transformer) as calls:
            draw(pipe, (0,), num_inference_steps=12)
        times = [float(call["timestep"][0]) for call in calls]
        return {time: times.count(time) == 2 for time in times}

    stock = guided()
    pipe.guider = pipe.guider.new()
    with accelerate(pipe, **options):
        found, state = guided(), pipe.guider.get_state()
    inside = [time for time, both in stock.items() if both]
    end = max(time for time in stock if time < inside[-1])
    assert 1 < sum(found.values()) < len(found) and state["step"] is None
    assert all(both == (end + 1 < time < inside[0] + 1) for time, both in found.items())


@pytest.mark.parametrize(
    "temporal", [ToCa(3, 0.4, first=1, score="attention"), Adaptive(3, ratio=0.3)], ids=["toca", "adaptive"]
)
def test_padding_counts_for_nothing(pipe: Any, temporal: Any) -> None:
    given = hunyuan_videos((0, 1))
    words = {name: given[name].clone() for name in ("prompt_embeds", "prompt_embeds_2")}
    for name, tensor in words.items():
        tensor[given[name.replace("embeds", "embeds_mask")] == 0] = 7.0
    with accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions="text-attention"), temporal=temporal):
        torch.testing.assert_close(draw(pipe, **words), draw(pipe), atol=1e-5, rtol=1e-5)


def test_stages_may_look_at_decoded_frames(pipe: Any) -> None:
    with accelerate(pipe, spatial=RALU.paper("ralu-7x")) as handle:
        assert draw(pipe, (0,)).isfinite().all()
    assert handle.report is not None and handle.report.completed


def test_a_picture_to_animate() -> None:
    picture = PIL.Image.new("RGB", (32, 32), (200, 30, 30))

    def given(samples: Any, **overrides: Any) -> dict[str, Any]:
        arguments = hunyuan_videos(samples, **overrides)
        return {name: value for name, value in arguments.items() if name not in ("height", "width")} | {
            "image": picture
        }

    make = partial(make_hunyuan_pipeline, HunyuanVideo15ImageToVideoPipeline)
    height, width = make().video_processor.calculate_default_height_width(32, 32, 32)
    tokens = 3 * (height // 4) * (width // 4)
    family = Family("i2v", make, given, tokens, {"guidance_scale": 2.5}, {"guidance_scale": 1.0})
    check_a_permuted_ribbon_is_the_stock_forward(family)
    check_flops_are_those_that_a_counter_counts(family, COUNTED[-1:])
