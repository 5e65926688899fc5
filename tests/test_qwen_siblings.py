"""Qwen-Image img2img, inpaint, edit and ControlNet pipelines on the same adapter."""

import inspect
from collections.abc import Callable
from contextlib import closing
from typing import Any

import diffusers
import PIL.Image
import pytest
import torch
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from torch import Tensor

from ralu_cache import RALU, Adaptive, TaylorSeer, accelerate
from ralu_cache.adapters.qwen import QwenAdapter
from tests import adapter_conformance as suite
from tests.adapter_conformance import Family
from tests.pipelines import random_image
from tests.pipelines_qwen import make_qwen_controlnet, make_qwen_pipeline, qwen_pictures
from tests.sparse_bench import Bench, drawn

HEIGHT, WIDTH = 32, 48
TOKENS = (HEIGHT // 4) * (WIDTH // 4)
REFERENCE = (16, 24)  # height and width, pixels
REFERENCE_TOKENS = 4 * 6
PLAN = RALU(steps=(3, 3, 3))
CLEAN = {"zero_cond_t": True}  # as the later edit checkpoints have it


@pytest.fixture(autouse=True)
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edit pipelines scale their references to a million pixels."""
    height, width = REFERENCE
    pictures = {
        pipeline_qwenimage_edit: (width, height, None),
        pipeline_qwenimage_edit_plus: (width, height),
        pipeline_qwenimage_edit_inpaint: (WIDTH, HEIGHT, None),  # it makes the picture as large as the reference
    }
    for module, size in pictures.items():
        monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio, size=size: size)


def make(kind: str) -> tuple[Any, dict[str, Any]]:
    image = random_image(HEIGHT, WIDTH)
    mask = PIL.Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (WIDTH // 2, 0, WIDTH, HEIGHT))
    if kind == "img2img":
        return make_qwen_pipeline(diffusers.QwenImageImg2ImgPipeline), {"image": image, "strength": 0.9}
    if kind == "inpaint":
        inpaint = {"image": image, "mask_image": mask, "strength": 0.9}
        return make_qwen_pipeline(diffusers.QwenImageInpaintPipeline), inpaint
    if kind == "edit":
        return make_qwen_pipeline(diffusers.QwenImageEditPipeline, processor=None), {"image": image}
    if kind == "edit plus":
        pipe = make_qwen_pipeline(diffusers.QwenImageEditPlusPipeline, CLEAN, processor=None)
        return pipe, {"image": [image, random_image(WIDTH, HEIGHT)]}
    if kind == "edit inpaint":
        inpaint = {"image": image, "mask_image": mask, "strength": 0.9}
        return make_qwen_pipeline(diffusers.QwenImageEditInpaintPipeline, processor=None), inpaint
    if kind == "controlnet":
        control = {"controlnet": make_qwen_controlnet()}
        return make_qwen_pipeline(diffusers.QwenImageControlNetPipeline, **control), {"control_image": image}
    control = {"controlnet": make_qwen_controlnet(extra_condition_channels=4)}
    pipe = make_qwen_pipeline(diffusers.QwenImageControlNetInpaintPipeline, **control)
    return pipe, {"control_image": image, "control_mask": mask}


def arguments(pipe: Any, samples: Any = (0,), **overrides: Any) -> dict[str, Any]:
    accepted = inspect.signature(type(pipe).__call__).parameters
    given = qwen_pictures(samples, **({"true_cfg_scale": 2.5, "height": HEIGHT, "width": WIDTH} | overrides))
    return {name: value for name, value in given.items() if name in accepted}


def run(pipe: Any, extra: dict[str, Any], samples: Any = (0,), **overrides: Any) -> Tensor:
    torch.manual_seed(0)  # some of the pipelines encode their control image with it
    return pipe(**arguments(pipe, samples, **overrides), **extra).images


KINDS = ["img2img", "inpaint", "edit", "edit plus", "edit inpaint", "controlnet", "controlnet inpaint"]


def test_every_pipeline_that_is_named_is_tested() -> None:
    names = {type(make(kind)[0]).__name__ for kind in KINDS}
    assert names | {"QwenImagePipeline"} == set(QwenAdapter.pipelines)


@pytest.mark.parametrize("kind", KINDS)
def test_siblings_run_as_published_on_short_token_sets_and_reuse_by_layer(kind: str) -> None:
    """What tests/test_pipelines_table.py runs without: the published noise, and outputs of layers."""
    pipe, extra = make(kind)
    layers = TaylorSeer(2, per_layer=True, first=1, compute_stage_end=False)
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), noise="paper"), temporal=layers)
    assert run(pipe, extra).isfinite().all()
    tokens = [stage.tokens for stage in handle.report.stages]
    assert tokens[0] == TOKENS // 4 and tokens[-1] == TOKENS and handle.report.completed
    assert sum(stage.reused for stage in handle.report.stages) > 0 and handle.report.temporal_saved_flops > 0


@pytest.mark.parametrize("kind", ["img2img", "edit", "edit inpaint", "controlnet"])
def test_a_sample_of_a_sibling_does_not_depend_on_its_batch(kind: str) -> None:
    pipe, extra = make(kind)
    images = {name: [value] * 2 for name, value in extra.items() if isinstance(value, PIL.Image.Image)}
    several = extra if kind == "edit" else extra | images
    for policy in (None, Adaptive(3, ratio=0.3)):
        accelerate(pipe, spatial=PLAN, temporal=policy)
        together, alone = run(pipe, several, (0, 1)), run(pipe, extra, (1,))
        if kind != "controlnet":  # there the control image is encoded with one draw for the whole batch
            torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)
        assert together.isfinite().all()


# ---- reference tokens


@pytest.mark.parametrize(
    "check",
    [
        suite.check_a_permuted_ribbon_is_the_stock_forward,
        suite.check_flops_are_those_that_a_counter_counts,
        suite.check_what_is_reused_is_what_was_not_run,
        suite.check_pictures_of_one_call_may_differ_in_what_they_reuse,
        suite.check_a_picture_does_not_depend_on_its_batch,
    ],
)
def test_conformance_with_reference_tokens_at_time_zero(check: Callable[[Family], None]) -> None:
    image = random_image(HEIGHT, WIDTH)

    def pictures(samples: Any, **overrides: Any) -> dict[str, Any]:
        return qwen_pictures(samples, height=HEIGHT, width=WIDTH, image=image, **overrides)

    def edit() -> Any:
        return make_qwen_pipeline(diffusers.QwenImageEditPipeline, CLEAN, processor=None)

    check(Family("edit", edit, pictures, TOKENS, {"true_cfg_scale": 2.5}, {"true_cfg_scale": 1.0}))


@pytest.mark.parametrize(("kind", "references"), [("edit", 1), ("edit plus", 2)])
def test_reference_tokens_ride_along(kind: str, references: int) -> None:
    pipe, extra = make(kind)
    seen: list[int] = []
    pipe.transformer.img_in.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    handle = accelerate(pipe, spatial=PLAN)
    run(pipe, extra, true_cfg_scale=1.0)
    assert handle.report is not None
    assert seen == [step.tokens + references * REFERENCE_TOKENS for step in handle.report.steps]


def test_reference_tokens_keep_their_place_and_time_in_a_shortened_call() -> None:
    """A coarse step is the stock forward on half the picture beside the same reference, text after the larger one."""
    pipe, extra = make("edit plus")
    calls: list[tuple[dict[str, Any], Tensor]] = []
    accelerate(pipe, spatial=RALU(steps=(1, 1, 1)))
    pipe.transformer.register_forward_hook(lambda n, a, call, out: calls.append((call, out[0])), with_kwargs=True)
    run(pipe, extra)
    call, output = calls[0]
    references = call["img_shapes"][0][1:]
    stock = make("edit plus")[0].transformer
    with torch.no_grad():
        shapes = [[(1, HEIGHT // 8, WIDTH // 8), *references]]
        expected = stock(**call | {"img_shapes": shapes})[0]
    corner = output[:, :TOKENS].unflatten(1, (HEIGHT // 4, WIDTH // 4))[:, ::2, ::2].flatten(1, 2)
    torch.testing.assert_close(corner, expected[:, : TOKENS // 4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output[:, TOKENS:], expected[:, TOKENS // 4 :], atol=1e-5, rtol=1e-5)


def test_a_sparse_call_modulates_the_tokens_that_run_by_the_present_time() -> None:
    """Right after a full call, it changes nothing of the image; the references' keys and values are remembered."""
    image = random_image(HEIGHT, WIDTH)
    case = Family(
        "edit", lambda: make("edit plus")[0], lambda samples, **overrides: qwen_pictures(samples[:1], height=HEIGHT,
        width=WIDTH, image=[image], **overrides), TOKENS, {"true_cfg_scale": 1.0}, {},
    )  # fmt: skip
    with closing(Bench(case)) as bench:
        assert bench.extra == REFERENCE_TOKENS
        expected, residual = bench.full(bench.call)
        for count in (1, 17, TOKENS):
            prediction, _ = bench.sparse(bench.call, drawn(1, TOKENS, count), residual)
            torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-5)


# ---- image to image


@pytest.mark.parametrize(("strength", "stages"), [(0.95, 3), (0.7, 2), (0.2, 1)])
def test_img2img_enters_at_any_stage(strength: float, stages: int) -> None:
    pipe, extra = make("img2img")
    handle = accelerate(pipe, spatial=PLAN)
    assert run(pipe, extra | {"strength": strength}, num_inference_steps=9).isfinite().all()
    assert handle.report is not None and len(handle.report.stages) == stages and handle.report.completed


def test_inpainting_keeps_what_is_not_masked() -> None:
    pipe, extra = make("inpaint")
    accelerate(pipe, spatial=PLAN)
    rows, columns = HEIGHT // 4, WIDTH // 4
    images = [run(pipe, extra, generator=torch.Generator().manual_seed(0), true_cfg_scale=scale) for scale in (1, 4)]
    left, right = (
        [image.unflatten(1, (rows, columns))[:, :, part] for image in images]
        for part in (slice(0, columns // 2), slice(columns // 2, None))
    )
    torch.testing.assert_close(*left)
    assert not torch.allclose(*right, atol=1e-3)


# ---- ControlNets


def test_the_controlnet_sees_the_reduced_tokens() -> None:
    pipe, extra = make("controlnet")
    seen: list[int] = []
    pipe.controlnet.controlnet_x_embedder.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    handle = accelerate(pipe, spatial=PLAN)
    with_control = run(pipe, extra)
    assert handle.report is not None and seen == [step.tokens for step in handle.report.steps]
    without = run(pipe, extra | {"controlnet_conditioning_scale": 0.0})
    assert not torch.allclose(with_control, without, atol=1e-3)


def test_a_controlnet_of_several_conditions() -> None:
    nets = diffusers.QwenImageMultiControlNetModel([make_qwen_controlnet()])
    pipe = make_qwen_pipeline(diffusers.QwenImageControlNetPipeline, controlnet=nets)
    handle = accelerate(pipe, spatial=PLAN)
    images = [random_image(HEIGHT, WIDTH), random_image(HEIGHT, WIDTH)]
    assert run(pipe, {"control_image": images, "controlnet_conditioning_scale": [0.5, 0.5]}).isfinite().all()
    assert handle.report is not None and handle.report.completed


def test_a_pipeline_made_from_an_accelerated_one_is_stock() -> None:
    pipe = make_qwen_pipeline()
    handle = accelerate(pipe, spatial=PLAN)
    other = diffusers.QwenImageImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    stock, extra = make("img2img")
    assert torch.equal(run(other, extra), run(stock, extra))
    assert handle.report is None and handle.enabled
