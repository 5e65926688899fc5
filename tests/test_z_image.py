"""What is Z-Image's own: lists of pictures and captions, padding, the prompt's half first, a velocity of other sign."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_z_image import RopeEmbedder

from ralu_cache import RALU, Adaptive, SeaCache, TaylorSeer, ToCa, accelerate
from ralu_cache.adapters import find_adapter
from tests.adapter_conformance import (
    COUNTED,
    Family,
    check_a_permuted_ribbon_is_the_stock_forward,
    check_flops_are_those_that_a_counter_counts,
)
from tests.pipelines_z_image import make_z_image_pipeline, z_image_pictures

SMALL = partial(z_image_pictures, height=32, width=48)
RAGGED = Family(
    "z-image-ragged", make_z_image_pipeline, partial(SMALL, longer=40), 96, {"guidance_scale": 2.5},
    {"guidance_scale": 0.0},
)  # fmt: skip


def draw(pipe: Any, samples: Any = (0, 1), **given: Any) -> torch.Tensor:
    picture: torch.Tensor = pipe(**SMALL(samples, **({"guidance_scale": 2.5} | given)), return_dict=False)[0]
    return picture


@pytest.fixture
def pipe() -> Any:
    return make_z_image_pipeline()


def test_guidance_that_ends_early_is_the_pipelines_own_truncation(pipe: Any) -> None:
    """Both leave out the negative half from t = 0.6 on; the pipeline by calls on one half."""
    truncated = draw(pipe, cfg_truncation=0.6)
    with accelerate(pipe, guidance="early:0.6") as handle:
        torch.testing.assert_close(draw(pipe), truncated, atol=1e-5, rtol=1e-5)
        assert handle.report is not None and 0 < handle.report.guided_steps < len(handle.report.steps)
        again = draw(pipe, cfg_truncation=0.25)  # ours has nothing to leave out then
    torch.testing.assert_close(again, draw(pipe, cfg_truncation=0.25), atol=1e-5, rtol=1e-5)


def test_forecasts_stand_in_for_the_model(pipe: Any) -> None:
    stock = draw(pipe)
    adapter, velocity = find_adapter(pipe), torch.randn(2, 4, 1, 8, 8)
    assert torch.equal(torch.stack(adapter.closed_prediction(velocity)), -velocity), "the pipeline turns the sign"
    with accelerate(pipe, temporal=SeaCache(threshold=0.5, order=1, reuse="prediction")) as handle:
        fast = draw(pipe)
        assert handle.report is not None and sum(step.calls == 0 for step in handle.report.steps) > 0
    assert (fast - stock).norm() < 0.3 * stock.norm()


@pytest.mark.parametrize("temporal", [None, TaylorSeer(interval=2, transition="inherit")], ids=["stages", "taylorseer"])
def test_captions_of_unlike_lengths(pipe: Any, temporal: Any) -> None:
    with accelerate(pipe, spatial=RALU(steps=(2, 2, 2)), temporal=temporal):
        together, alone = draw(pipe, (0, 1), longer=40), draw(pipe, (0,), longer=40)
        torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-5)
    if temporal is None:
        check_a_permuted_ribbon_is_the_stock_forward(RAGGED)
        check_flops_are_those_that_a_counter_counts(RAGGED, COUNTED[:1])


def test_captions_of_unlike_lengths_are_refused_where_layers_are_kept(pipe: Any) -> None:
    for temporal in (ToCa(3, 0.4), Adaptive(3, ratio=0.3)):
        with accelerate(pipe, temporal=temporal):
            with pytest.raises(ValueError, match=r"captions of \[32, 64\] tokens, padding included"):
                draw(pipe, longer=40)
            assert draw(pipe).isfinite().all()


@pytest.mark.parametrize("score", ["attention", "key"])
def test_scores_of_layers(pipe: Any, score: str) -> None:
    with accelerate(pipe, spatial=RALU(steps=(3, 3, 3)), temporal=ToCa(3, 0.4, first=1, score=score)):
        together, alone = draw(pipe), draw(pipe, (1,))
        torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)


def test_the_rotary_embedder_is_stock_in_copies_and_after_the_last_user(pipe: Any) -> None:
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    stock = draw(pipe)
    first, second = (accelerate(one, spatial=RALU(steps=(2, 2, 2))) for one in (pipe, other))
    assert type(copy.deepcopy(pipe.transformer).rope_embedder) is RopeEmbedder
    fast = draw(other)
    first.disable()
    assert torch.equal(draw(pipe), stock) and torch.equal(draw(other), fast)
    second.disable()
    assert type(pipe.transformer.rope_embedder) is RopeEmbedder


def test_control_samples_are_refused(pipe: Any) -> None:
    latents, caption = torch.zeros(4, 1, 8, 8), torch.zeros(7, 32)
    with accelerate(pipe, temporal="taylorseer:2") as handle, handle.call(height=16, width=16):
        pipe.scheduler.set_timesteps(4)
        with pytest.raises(ValueError, match="controlnet_block_samples is not supported for Z-Image"):
            pipe.transformer([latents], torch.ones(1), [caption], controlnet_block_samples={})
        with pytest.raises(ValueError, match=r"x of shapes .* is not supported: expected latents of one size"):
            pipe.transformer([latents, latents[..., :4]], torch.ones(2), [caption] * 2)
