"""What is particular to Stable Diffusion 3: positions from a table, stacked guidance, skip-layer guidance, siblings.

What every family must do is in tests/adapter_conformance.py.
"""

import inspect
from typing import Any

import diffusers
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.counted import Counted
from ralu_cache import RALU, SeaCache, TaylorSeer, TeaCache, accelerate
from ralu_cache.adapters.heads import attention_heads, text_share
from ralu_cache.adapters.sd3 import SD3Adapter, sample_table
from tests.pipelines import (
    HEIGHT,
    TOKENS,
    WIDTH,
    make_sd3_controlnet,
    make_sd3_pipeline,
    make_sd3_transformer,
    nothing_under_way,
    pictures,
    random_image,
)
from tests.test_caching import Scripted

PLAN = RALU(steps=(2, 2, 2))
GRID = HEIGHT // 4, WIDTH // 4
BLACK = PIL.Image.new("L", (WIDTH, HEIGHT))


@pytest.fixture
def pipe() -> Any:
    return make_sd3_pipeline()


def arguments(pipe: Any, batch: int = 2, **overrides: Any) -> dict[str, Any]:
    accepted = inspect.signature(type(pipe).__call__).parameters
    given = pictures(range(batch), **({"guidance_scale": 2.5} | overrides))
    return {name: value for name, value in given.items() if name in accepted}


def latents(pipe: Any, batch: int = 2, **overrides: Any) -> Tensor:
    torch.manual_seed(0)  # the stock ControlNet pipeline encodes its image with it
    return pipe(**arguments(pipe, batch, **overrides)).images


# ---- positions


def test_whole_positions_are_the_stock_crop_bit_for_bit() -> None:
    embed = make_sd3_transformer().pos_embed
    size = embed.pos_embed_max_size
    rows, columns = GRID
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    origin = torch.tensor([(size - rows) // 2, (size - columns) // 2])
    sampled = sample_table(embed.pos_embed.view(size, size, -1), (place + origin)[None])
    assert torch.equal(sampled, embed.cropped_pos_embed(2 * rows, 2 * columns))


@given(st.floats(-1, 5), st.floats(-1, 4))
def test_between_them_the_table_is_interpolated_and_at_its_edges_continued(row: float, column: float) -> None:
    """A table of linear functions is read back, as far as it goes."""
    table = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(4.0), indexing="ij"), -1)
    found = sample_table(table, torch.tensor([[[row, column]]]))[0, 0]
    expected = torch.tensor([min(max(row, 0), 4), min(max(column, 0), 3)], dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_coarse_step_is_the_stock_forward_on_the_half_size_picture(pipe: Any) -> None:
    """In their own frame, coarse tokens sit where those of a picture of half the size would."""
    outputs: list[Tensor] = []
    accelerate(pipe, spatial=RALU(steps=(1, 1, 1)))
    pipe.transformer.register_forward_hook(lambda net, args, out: outputs.append(out[0]))
    latents(pipe)
    stock = make_sd3_pipeline()
    small = torch.nn.functional.avg_pool2d(
        torch.stack([torch.randn(4, HEIGHT // 2, WIDTH // 2, generator=g) for g in pictures((0, 1))["generator"]]), 2
    )
    halves: list[Tensor] = []
    stock.transformer.register_forward_hook(lambda net, args, out: halves.append(out[0]))
    latents(stock, height=HEIGHT // 2, width=WIDTH // 2, latents=2 * small, num_inference_steps=1)
    for output in (outputs[0][..., ::2, ::2], outputs[0][..., 1::2, 1::2]):  # replicated pixel by pixel
        torch.testing.assert_close(output, halves[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"positions": "fine"}, {"anchor": "corner"}, {"positions": "fine", "anchor": "corner"}]
)
def test_positions_and_anchors(pipe: Any, options: dict[str, str]) -> None:
    with accelerate(pipe, spatial=PLAN):
        usual = latents(pipe)
    with accelerate(pipe, spatial=RALU(steps=(2, 2, 2), **options)):
        other = latents(pipe)
    assert other.isfinite().all() and not torch.allclose(other, usual, atol=1e-4)


def test_sizes_beyond_the_table_are_refused_before_the_first_step(pipe: Any) -> None:
    accelerate(pipe, spatial=PLAN)
    with pytest.raises(ValueError, match=r"8x48 tokens are more than the model's table .* at most 40x40"):
        latents(pipe, width=192)


def test_odd_sizes_cache_without_stages(pipe: Any) -> None:
    handle = accelerate(pipe, temporal=TeaCache(threshold=0.5, coefficients="identity"))
    assert latents(pipe, width=100).isfinite().all()
    assert handle.report is not None and handle.report.size == (8, 25)
    accelerate(pipe, spatial=PLAN)
    with pytest.raises(ValueError, match="multiples of 8 for spatial stages, got 32x100"):
        latents(pipe, width=100)


def test_a_model_without_dual_attention_and_query_norms() -> None:
    pipe = make_sd3_pipeline()
    pipe.register_modules(transformer=make_sd3_transformer(dual_attention_layers=(), qk_norm=None))
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions="text-attention"), temporal=TaylorSeer(interval=2))
    assert latents(pipe).isfinite().all() and handle.report is not None and handle.report.completed


# ---- guidance


def test_the_halves_of_a_guided_call_decide_for_themselves(pipe: Any) -> None:
    """[negative 0, negative 1, positive 0, positive 1]: each sample of the stack has a script of its own."""
    wanted = [tuple(i % 4 == place for place in range(4)) for i in range(8)]
    handle = accelerate(pipe, temporal=Scripted(script=tuple(wanted)))
    latents(pipe)
    assert handle.report is not None
    found = [step.branches[0].reused for step in handle.report.steps]
    assert found == [(False,) * 4, *wanted[1:]]
    assert [(stage.computed, stage.reused) for stage in handle.report.stages] == [(32 - 7, 7)]
    assert "7.5" not in str(handle.report) and handle.report.batch == 2


def test_regions_by_text_attention_look_at_the_prompt_not_at_its_negative(pipe: Any) -> None:
    plan = RALU(steps=(1, 1, 1), regions="text-attention")
    masks = []
    for guidance in (1.0, 2.5):
        with accelerate(pipe, spatial=plan) as handle:
            latents(pipe, guidance_scale=guidance)
        assert handle.report is not None
        masks.append(handle.report.regions[0])
    assert (masks[0] == masks[1]).all(), "the first step sees the same noise, guided or not"


def test_text_attention_is_the_share_that_stock_attention_gives_the_text() -> None:
    """With values 1 for text and 0 for image tokens, stock attention returns that share itself."""
    attention = make_sd3_transformer().transformer_blocks[-1].attn
    for projection, value in ((attention.to_v, 0.0), (attention.add_v_proj, 1.0), (attention.to_out[0], 0.0)):
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.constant_(projection.bias, value)
    torch.nn.init.eye_(attention.to_out[0].weight)
    image, text = torch.randn(2, 12, 32), torch.randn(2, 7, 32)
    with torch.no_grad():
        expected = attention(hidden_states=image, encoder_hidden_states=text)[0].mean(-1)
        torch.testing.assert_close(text_share(*attention_heads(attention, image, text)), expected)
    assert 0.1 < expected.mean() < 0.9


SKIP = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.7}


def test_skip_layer_guidance_is_a_branch_of_its_own(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=PLAN)
    plain = latents(pipe, num_inference_steps=6)
    skipped = latents(pipe, num_inference_steps=6, **SKIP)
    report = handle.report
    assert report is not None and not torch.allclose(skipped, plain, atol=1e-3)
    assert [step.calls for step in report.steps] == [1, 2, 2, 2, 2, 1], "steps 1 to 4 are those below 0.7 of 6"
    assert [step.samples for step in report.steps] == [4, 6, 6, 6, 6, 4]
    with accelerate(pipe, spatial=PLAN, temporal=TaylorSeer(interval=9, max_age=0)):
        assert torch.equal(latents(pipe, num_inference_steps=6, **SKIP), skipped)
    with accelerate(pipe, temporal=TaylorSeer(interval=2)) as handle:
        assert latents(pipe, num_inference_steps=8, **SKIP).isfinite().all()
    assert handle.report is not None
    assert handle.report.flops + handle.report.temporal_saved_flops == handle.report.baseline_flops
    assert {len(step.branches) for step in handle.report.steps} == {1, 2}
    assert handle.report.stages[0].branches[1].reused > 0


def test_skipped_layers_are_not_counted(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=PLAN)
    with Counted(pipe.transformer) as counted:
        latents(pipe, num_inference_steps=6, **SKIP | {"skip_guidance_layers": [1, 2, 7]})
    assert handle.report is not None and counted.flops == handle.report.flops


def test_skip_layer_guidance_that_cannot_be_right_is_refused(pipe: Any) -> None:
    accelerate(pipe, spatial=PLAN)
    with pytest.raises(ValueError, match=r"skip_guidance_layers=\[1\] with num_inference_steps=8: the plan takes 6"):
        latents(pipe, **SKIP)
    accelerate(pipe, spatial=RALU(split=(1, 1, 1)))
    assert latents(pipe, **SKIP).isfinite().all()
    accelerate(pipe, temporal="seacache")
    with pytest.raises(ValueError, match=r"skip_guidance_layers=\[0, 1\] with temporal caching is not supported"):
        latents(pipe, **SKIP | {"skip_guidance_layers": [0, 1]})
    assert nothing_under_way(pipe)


# ---- plans


@pytest.mark.parametrize(("name", "steps"), [("ralu", (8, 4)), ("ralu-2x", (5, 6, 9)), ("ralu-3x", (3, 3, 6))])
def test_the_familys_presets(pipe: Any, name: str, steps: tuple[int, ...]) -> None:
    handle = accelerate(pipe, spatial=name)
    assert latents(pipe, num_inference_steps=28).isfinite().all()
    report = handle.report
    assert report is not None and tuple(stage.steps for stage in report.stages) == steps
    assert report.spatial == ("ralu-8x" if name == "ralu" else name)
    assert report.flop_ratio > 28 / sum(steps)
    ends = [0.5, 0.0] if name == "ralu" else [0.9, 0.8, 0.0]
    assert [stage.sigma_end for stage in report.stages] == pytest.approx(ends)


def test_the_published_plans_run(pipe: Any) -> None:
    for name, ends in (("ralu-2x", [0.8, 0.7, 0]), ("ralu-3x", [0.75, 0.7, 0])):
        handle = accelerate(pipe, spatial=RALU.paper(name))
        assert latents(pipe).isfinite().all() and handle.report is not None
        assert [stage.sigma_end for stage in handle.report.stages] == pytest.approx(ends)


# ---- siblings


def make(kind: str) -> tuple[Any, dict[str, Any]]:
    image = [random_image()] * 2
    mask = BLACK.copy()
    mask.paste(255, (WIDTH // 2, 0, WIDTH, HEIGHT))
    painting = {"image": image, "mask_image": [mask] * 2, "strength": 0.8, "num_inference_steps": 6}
    if kind == "img2img":
        pipe = make_sd3_pipeline(diffusers.StableDiffusion3Img2ImgPipeline)
        return pipe, {"image": image, "strength": 0.8, "num_inference_steps": 6}
    if kind == "inpaint":
        return make_sd3_pipeline(diffusers.StableDiffusion3InpaintPipeline, channels=16), painting
    if kind == "inpaint model":
        return make_sd3_pipeline(diffusers.StableDiffusion3InpaintPipeline, channels=16, in_channels=33), painting
    sizes: dict[str, Any] = {
        "8b controlnet": {"joint_attention_dim": None, "use_pos_embed": False},
        "controlnet inpaint": {"extra_conditioning_channels": 1},
    }.get(kind, {})
    net: Any = make_sd3_controlnet(**sizes)
    given: dict[str, Any] = {"control_image": image[0]}
    cls = diffusers.StableDiffusion3ControlNetPipeline
    if kind == "controlnet inpaint":
        cls = diffusers.StableDiffusion3ControlNetInpaintingPipeline
        given = {"control_image": image, "control_mask": [mask] * 2}
    if kind == "controlnets":
        net, given = diffusers.SD3MultiControlNetModel([net, make_sd3_controlnet()]), {"control_image": image}
        given["controlnet_conditioning_scale"] = [0.5, 0.5]
    pipe = make_sd3_pipeline(cls, controlnet=net)
    torch.nn.init.constant_(pipe.vae.encoder.conv_out.bias[4:], -99.0)  # no variance to draw from
    return pipe, given


KINDS = ["img2img", "inpaint", "inpaint model", "controlnet", "8b controlnet", "controlnets", "controlnet inpaint"]


@pytest.mark.parametrize("kind", KINDS)
def test_siblings_run_as_published_on_short_token_sets(kind: str) -> None:
    """With the published noise, which tests/test_pipelines_table.py runs without; and those that it does not list."""
    pipe, extra = make(kind)
    every_second = TaylorSeer(2, first=1, compute_stage_end=False)
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), noise="paper"), temporal=every_second)
    assert latents(pipe, **extra).isfinite().all()
    report = handle.report
    assert report is not None and report.completed and report.batch == 2
    assert report.stages[0].tokens == TOKENS // 4 and report.stages[-1].tokens == TOKENS
    assert sum(stage.reused for stage in report.stages) > 0


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "controlnet", "controlnet inpaint"])
def test_a_picture_of_a_sibling_does_not_depend_on_its_batch(kind: str) -> None:
    pipe, extra = make(kind)
    accelerate(pipe, spatial=PLAN, temporal=SeaCache(threshold=0.4))
    together = latents(pipe, **extra)
    alone = {name: value[:1] if isinstance(value, list) else value for name, value in extra.items()}
    chosen = pictures((1,), guidance_scale=2.5) | alone
    accepted = inspect.signature(type(pipe).__call__).parameters
    single = pipe(**{name: value for name, value in chosen.items() if name in accepted}).images
    torch.testing.assert_close(single[0], together[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("strength", "stages"), [(1.0, 3), (0.66, 2), (0.3, 1)])
def test_img2img_enters_at_any_stage(strength: float, stages: int) -> None:
    pipe, extra = make("img2img")
    handle = accelerate(pipe, spatial=RALU(split=(1, 1, 1)))
    assert latents(pipe, image=extra["image"], strength=strength, num_inference_steps=9).isfinite().all()
    report = handle.report
    assert report is not None and len(report.stages) == stages and report.completed
    assert report.baseline_steps == 9 - int(9 - 9 * strength) >= len(report.steps)
    stock = make("img2img")[0].scheduler
    stock.set_timesteps(9)
    assert report.steps[0].sigma == pytest.approx(float(stock.sigmas[9 - report.baseline_steps]), abs=1e-6)


def test_a_strength_counted_on_other_steps_means_their_level() -> None:
    pipe, extra = make("img2img")
    handle = accelerate(pipe, spatial=PLAN)
    assert latents(pipe, **extra | {"num_inference_steps": 20, "strength": 0.5}).isfinite().all()
    pipe.scheduler.set_timesteps(20)
    assert handle.report is not None
    assert handle.report.steps[0].sigma == pytest.approx(float(pipe.scheduler.sigmas[10]), abs=1e-6)
    assert nothing_under_way(pipe)


@pytest.mark.parametrize("kind", ["controlnet", "controlnet inpaint"])
def test_the_controlnet_sees_the_reduced_tokens(kind: str) -> None:
    pipe, extra = make(kind)
    seen: list[int] = []
    pipe.controlnet.controlnet_blocks[0].register_forward_hook(lambda net, args, out: seen.append(args[0].shape[1]))
    handle = accelerate(pipe, spatial=PLAN)
    controlled = latents(pipe, **extra)
    assert handle.report is not None and seen == [step.tokens for step in handle.report.steps]
    assert not torch.allclose(controlled, latents(pipe, **extra, controlnet_conditioning_scale=0.0), atol=1e-3)


def test_the_mask_reaches_the_controlnet_on_short_token_sets() -> None:
    """Black keeps, white is painted anew: the ControlNet gets the picture without what is white, and the mask."""
    pipe, extra = make("controlnet inpaint")
    accelerate(pipe, spatial=PLAN)
    half = latents(pipe, **extra)
    kept = latents(pipe, **extra | {"control_mask": [BLACK] * 2})
    assert half.isfinite().all() and not torch.allclose(half, kept, atol=1e-3)


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_controlnet_samples_are_not_added_twice(spatial: RALU | None) -> None:
    pipe, extra = make("controlnet")
    left: list[Tensor] = []
    entered: list[Tensor] = []
    pipe.transformer.norm_out.register_forward_hook(lambda module, args, out: left.append(args[0]))
    steps = 8 if spatial is None else 6
    script = tuple((i % 2 == 1,) * 2 for i in range(steps))
    accelerate(pipe, spatial=spatial, temporal=Scripted(script=script, compute_stage_end=False))
    pipe.transformer.pos_embed.register_forward_hook(lambda module, args, out: entered.append(out))
    latents(pipe, 1, **extra)
    for step in range(1, steps, 2):
        before, after = (left[i] - entered[i] for i in (step - 1, step))
        torch.testing.assert_close(before, after)


def test_a_pipeline_made_from_an_accelerated_one_is_stock(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=PLAN)
    other = diffusers.StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    given = {"image": [random_image()] * 2, "strength": 0.9, "num_inference_steps": 6}
    stock = make("img2img")[0]
    assert torch.equal(latents(other, **given), latents(stock, **given))
    assert handle.report is None and handle.enabled


def test_the_adapter_is_found_by_its_model() -> None:
    assert SD3Adapter.matches(make_sd3_transformer())
    with pytest.raises(TypeError, match=r"FluxPipeline.*StableDiffusion3Pipeline"):
        accelerate(object(), spatial="ralu")


def test_perturbed_attention_guidance_is_refused() -> None:
    """Its attention splits the batch in thirds, whatever samples of it a call is made for."""
    pipe = make_sd3_pipeline(diffusers.StableDiffusion3PAGPipeline)
    with pytest.raises(TypeError, match=r"StableDiffusion3PAGPipeline \(SD3Transformer2DModel\) is not supported"):
        accelerate(pipe, spatial="ralu")
