"""The orchestrator on the stock FluxPipeline: off is stock, and every way to call it works accelerated.

What every family must do is in tests/adapter_conformance.py.
"""

import inspect
import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FluxPipeline

from ralu_cache import RALU, accelerate
from ralu_cache.adapters.flux import FluxAdapter
from ralu_cache.engine.scheduler import _staged_class
from ralu_cache.plane.regions import scorer_names
from tests.pipelines import (
    HEIGHT,
    TOKENS,
    WIDTH,
    call_arguments,
    embeddings,
    generators,
    make_pipeline,
    make_transformer,
    nothing_under_way,
)

PLAN = RALU(steps=(2, 2, 2), regions="latent-gradient")
MIXED = round(0.3 * TOKENS / 4) * 3 + TOKENS // 4


def latents(pipe: Any, **overrides: Any) -> torch.Tensor:
    return pipe(**call_arguments(**overrides)).images


def test_off_is_stock_before_between_and_after() -> None:
    stock, pipe = make_pipeline(), make_pipeline()
    expected = latents(stock)
    assert torch.equal(latents(pipe), expected)
    with accelerate(pipe, spatial=PLAN):
        first = latents(pipe)
    assert not torch.equal(first, expected)
    assert torch.equal(latents(pipe), expected)
    handle = accelerate(pipe, spatial=PLAN)
    assert torch.equal(latents(pipe), first)
    handle.disable()
    handle.disable()
    assert torch.equal(latents(pipe), expected)
    assert type(pipe.scheduler) is type(stock.scheduler) and not pipe.transformer._forward_pre_hooks
    assert pipe.config["scheduler"] == stock.config["scheduler"]


def test_installed_with_nothing_to_do_is_stock(pipe: Any) -> None:
    expected = latents(pipe)
    with accelerate(pipe) as handle:
        assert torch.equal(latents(pipe), expected)
        assert handle.enabled
    assert not handle.enabled


def test_a_plan_of_one_fine_stage_is_the_stock_arithmetic(pipe: Any) -> None:
    """Same canvas, same calls, same Euler steps: only the levels are the plan's own."""
    handle = accelerate(pipe, spatial=RALU(steps=(6,), ends=(1.0,), shifts=(3.0,), z=2.0))
    staged = latents(pipe)
    levels = [step.sigma for step in handle.report.steps]
    handle.disable()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_dynamic_shifting=False, shift=1.0)
    torch.testing.assert_close(staged, latents(pipe, sigmas=levels, num_inference_steps=6), atol=1e-5, rtol=1e-5)


def test_the_stages_run_on_the_planned_tokens(pipe: Any) -> None:
    tokens: list[int] = []
    pipe.transformer.transformer_blocks[0].register_forward_hook(
        lambda module, args, kwargs, output: tokens.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    handle = accelerate(pipe, spatial=PLAN)
    latents(pipe)
    two_calls_a_step = [n for n in (TOKENS // 4, MIXED, TOKENS) for _ in range(4)]
    assert tokens == two_calls_a_step
    report = handle.report
    assert [step.tokens for step in report.steps] == two_calls_a_step[::2]
    assert [step.calls for step in report.steps] == [2] * 6
    assert [stage.kind for stage in report.stages] == ["coarse", "mixed", "fine"]
    assert report.completed and report.batch == 2 and report.size == (HEIGHT // 4, WIDTH // 4)
    assert 1 < report.flop_ratio < 8 / 2
    assert report.regions[0].shape == (2, HEIGHT // 8, WIDTH // 8)


def test_regions_differ_between_samples_and_run_in_one_call(pipe: Any) -> None:
    calls: list[int] = []
    pipe.transformer.transformer_blocks[0].register_forward_hook(
        lambda module, args, kwargs, output: calls.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    handle = accelerate(pipe, spatial=PLAN)
    latents(pipe)
    mask = handle.report.regions[0]
    assert (mask[0] != mask[1]).any() and (mask.sum((1, 2)) == mask[0].sum()).all()
    assert calls == [2] * 12


def test_a_failed_run_leaves_nothing_behind(pipe: Any) -> None:
    stock = latents(pipe)
    handle = accelerate(pipe, spatial=PLAN)
    expected = latents(pipe)
    for failing in (0, 1, 3, 5):
        count = 0

        def fail(module: Any, args: Any, failing: int = failing) -> None:
            nonlocal count
            count += 1
            if count == 2 * failing + 1:
                raise torch.OutOfMemoryError("out of memory in mid-step")

        broken = pipe.transformer.single_transformer_blocks[0].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            latents(pipe)
        broken.remove()
        assert nothing_under_way(pipe)
        assert torch.equal(latents(pipe), expected)
    with pytest.raises(ZeroDivisionError):
        latents(pipe, callback_on_step_end=lambda *_: 1 / 0)
    direct = call_arguments()
    ids = FluxPipeline._prepare_latent_image_ids(2, HEIGHT // 4, WIDTH // 4, "cpu", torch.float32)
    foreign = pipe.transformer(
        hidden_states=torch.ones(2, TOKENS, 16), timestep=torch.full((2,), 0.123), guidance=torch.ones(2),
        pooled_projections=direct["pooled_prompt_embeds"], encoder_hidden_states=direct["prompt_embeds"],
        txt_ids=torch.zeros(7, 3), img_ids=ids,
        return_dict=False,
    )  # fmt: skip
    assert foreign[0].shape == (2, TOKENS, 16)
    assert torch.equal(latents(pipe), expected)
    handle.disable()
    assert torch.equal(latents(pipe), stock)


def test_calling_accelerate_again_replaces(pipe: Any) -> None:
    stock = latents(pipe)
    first = accelerate(pipe, spatial=PLAN)
    once = latents(pipe)
    second = accelerate(pipe, spatial=PLAN)
    assert not first.enabled and second.enabled
    assert torch.equal(latents(pipe), once)
    assert len(pipe.transformer._forward_pre_hooks) == 1
    first.disable()
    assert torch.equal(latents(pipe), once)
    second.disable()
    assert torch.equal(latents(pipe), stock)


def test_the_global_generator_is_left_alone(pipe: Any) -> None:
    for plan in (PLAN, RALU.paper("ralu-7x")):
        accelerate(pipe, spatial=plan)
        before = torch.get_rng_state()
        latents(pipe)
        assert torch.equal(torch.get_rng_state(), before)


def test_ways_to_call(pipe: Any) -> None:
    accelerate(pipe, spatial=PLAN)
    expected = latents(pipe)
    start = torch.cat([torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=g) for g in generators(2)])
    assert torch.equal(
        latents(pipe, latents=FluxPipeline._pack_latents(start, 2, 4, HEIGHT // 2, WIDTH // 2)), expected
    )
    assert latents(pipe, true_cfg_scale=1.0).shape == expected.shape
    assert latents(pipe, generator=torch.Generator().manual_seed(0)).shape == expected.shape
    assert latents(pipe, batch=1, num_images_per_prompt=3, generator=generators(3)).shape[0] == 3
    assert isinstance(latents(pipe, output_type="pil")[0], PIL.Image.Image)
    assert isinstance(latents(pipe, output_type="np"), np.ndarray)
    assert latents(pipe, output_type="pt").shape == (2, 3, HEIGHT, WIDTH)
    assert isinstance(pipe(**call_arguments(return_dict=False)), tuple)
    assert latents(pipe, height=32, width=64).shape == (2, 8 * 16, 16)
    assert pipe.num_timesteps == 6


def test_the_progress_bar_counts_the_real_steps(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.set_progress_bar_config(disable=False)
    accelerate(pipe, spatial=PLAN)
    latents(pipe)
    assert "6/6" in capsys.readouterr().err


def test_split_divides_the_callers_steps(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=RALU(split=(1, 1, 2)))
    latents(pipe, num_inference_steps=12)
    assert [stage.steps for stage in handle.report.stages] == [3, 3, 6]
    latents(pipe, num_inference_steps=6)
    assert sum(stage.steps for stage in handle.report.stages) == 6
    assert not handle.report.notices


@pytest.mark.parametrize("steps", [(3,), (2, 2), (2, 1, 1, 2)])
def test_any_number_of_stages(pipe: Any, steps: tuple[int, ...]) -> None:
    ends = {1: (1.0,), 2: (0.4, 1.0), 4: (0.2, 0.4, 0.6, 1.0)}[len(steps)]
    handle = accelerate(pipe, spatial=RALU(steps=steps, ends=ends))
    assert latents(pipe).isfinite().all()
    tokens = [stage.tokens for stage in handle.report.stages]
    assert tokens == sorted(tokens) and tokens[-1] == TOKENS
    if len(steps) == 4:
        first, second = handle.report.regions
        assert (second | ~first).all(), "what was refined stays refined"


@pytest.mark.parametrize("order", ["offload first", "offload second"])
def test_survives_model_offload(order: str) -> None:
    pipe = make_pipeline()
    accelerate(pipe, spatial=PLAN)
    expected = latents(pipe)
    pipe = make_pipeline()
    if order == "offload first":
        pipe.enable_model_cpu_offload(device="cpu")
    accelerate(pipe, spatial=PLAN)
    if order == "offload second":
        pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        torch.testing.assert_close(latents(pipe), expected)


def test_a_saved_accelerated_pipeline_is_the_stock_one(pipe: Any, tmp_path: Any) -> None:
    accelerate(pipe, spatial=PLAN)
    pipe.scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == type(pipe.scheduler).__name__


def test_the_scheduler_keeps_the_stock_parameter_names() -> None:
    stock = type(make_pipeline().scheduler)
    staged = _staged_class(stock)
    for method in ("set_timesteps", "step", "scale_noise", "set_begin_index"):
        mine, theirs = (list(inspect.signature(getattr(c, method)).parameters) for c in (staged, stock))
        assert mine == theirs


@pytest.mark.parametrize("regions", scorer_names())
def test_every_scorer_chooses_regions_in_a_run(pipe: Any, regions: str) -> None:
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions=regions))
    together = latents(pipe)
    assert together.isfinite().all()
    alone = {name: rows[1:] for name, rows in embeddings(2).items()}
    torch.testing.assert_close(
        latents(pipe, batch=1, **alone, generator=generators(1, first=101))[0], together[1], atol=1e-5, rtol=1e-5
    )
    share = handle.report.regions[0].mean()
    assert share == pytest.approx(0.3, abs=0.01)


def test_text_attention_is_the_share_that_stock_attention_gives_the_text() -> None:
    """With values 1 for text and 0 for image tokens, stock attention returns that share itself."""
    attention = make_transformer().transformer_blocks[0].attn
    for projection, value in ((attention.to_v, 0.0), (attention.add_v_proj, 1.0), (attention.to_out[0], 0.0)):
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.constant_(projection.bias, value)
    torch.nn.init.eye_(attention.to_out[0].weight)
    angles = torch.rand(7 + 12, 16)
    inputs = {"hidden_states": torch.randn(2, 12, 32), "encoder_hidden_states": torch.randn(2, 7, 32)}
    rotary = (angles.cos(), angles.sin())
    with torch.no_grad():
        expected = attention(**inputs, image_rotary_emb=rotary)[0].mean(-1)
        found = FluxAdapter(make_transformer()).text_attention(attention, **inputs, image_rotary_emb=rotary)
        torch.testing.assert_close(found, expected)
    assert 0.1 < expected.mean() < 0.9
