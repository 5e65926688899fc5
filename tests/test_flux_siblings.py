"""FLUX img2img, inpaint, Fill, Kontext, Control and ControlNet pipelines on the same adapter."""

import inspect
from typing import Any

import diffusers
import PIL.Image
import pytest
import torch

from ralu_cache import RALU, accelerate
from tests.pipelines import (
    HEIGHT,
    TOKENS,
    WIDTH,
    call_arguments,
    embeddings,
    generators,
    make_controlnet,
    make_pipeline,
    random_image,
)

PLAN = RALU(steps=(3, 3, 3))


def arguments(pipe: Any, batch: int = 1, **overrides: Any) -> dict[str, Any]:
    accepted = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in call_arguments(batch, **overrides).items() if name in accepted}


def make(kind: str) -> tuple[Any, dict[str, Any]]:
    image = random_image()
    mask = PIL.Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (WIDTH // 2, 0, WIDTH, HEIGHT))
    if kind == "img2img":
        return make_pipeline(diffusers.FluxImg2ImgPipeline), {"image": image, "strength": 0.9}
    if kind == "inpaint":
        return make_pipeline(diffusers.FluxInpaintPipeline), {"image": image, "mask_image": mask, "strength": 0.9}
    if kind == "fill":
        return make_pipeline(diffusers.FluxFillPipeline, in_channels=48), {"image": image, "mask_image": mask}
    if kind == "kontext":
        return make_pipeline(diffusers.FluxKontextPipeline), {
            "image": image, "_auto_resize": False, "max_area": HEIGHT * WIDTH
        }  # fmt: skip
    if kind == "kontext inpaint":
        return make_pipeline(diffusers.FluxKontextInpaintPipeline), {
            "image": image, "mask_image": mask, "_auto_resize": False, "max_area": HEIGHT * WIDTH, "strength": 0.9
        }  # fmt: skip
    entering = {"image": image, "control_image": image, "strength": 0.9}
    masked = entering | {"mask_image": mask}
    if kind.startswith("control "):
        cls = {"img2img": diffusers.FluxControlImg2ImgPipeline, "inpaint": diffusers.FluxControlInpaintPipeline}
        return make_pipeline(cls[kind.split()[1]], in_channels=32), masked if kind.endswith("inpaint") else entering
    if kind == "control":
        return make_pipeline(diffusers.FluxControlPipeline, in_channels=32), {"control_image": image}
    if kind == "controlnet img2img":
        return make_pipeline(diffusers.FluxControlNetImg2ImgPipeline, controlnet=make_controlnet()), entering
    if kind == "controlnet inpaint":
        return make_pipeline(diffusers.FluxControlNetInpaintPipeline, controlnet=make_controlnet()), masked
    return make_pipeline(diffusers.FluxControlNetPipeline, controlnet=make_controlnet()), {"control_image": image}


KINDS = [
    "img2img", "inpaint", "fill", "kontext", "kontext inpaint", "control", "control img2img", "control inpaint",
    "controlnet", "controlnet img2img", "controlnet inpaint",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_siblings_run_as_published_on_short_token_sets(kind: str) -> None:
    """With the published noise, which tests/test_pipelines_table.py runs without."""
    pipe, extra = make(kind)
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), noise="paper"))
    assert pipe(**arguments(pipe), **extra).images.isfinite().all()
    tokens = [stage.tokens for stage in handle.report.stages]
    assert tokens[0] == TOKENS // 4 and tokens[-1] == TOKENS and handle.report.completed


@pytest.mark.parametrize("kind", ["img2img", "fill", "kontext", "control", "controlnet"])
def test_a_sample_of_a_sibling_does_not_depend_on_its_batch(kind: str) -> None:
    pipe, extra = make(kind)
    accelerate(pipe, spatial=PLAN)
    for name in ("image", "mask_image", "control_image"):
        if name in extra:
            extra[name] = [extra[name]] * 2 if kind != "kontext" else extra[name]
    together = pipe(**arguments(pipe, 2), **extra).images
    alone = {name: rows[1:] for name, rows in embeddings(2).items()}
    for name in ("image", "mask_image", "control_image"):
        if isinstance(extra.get(name), list):
            extra[name] = extra[name][:1]
    single = pipe(**arguments(pipe, 1, **alone, generator=generators(1, first=101)), **extra).images
    torch.testing.assert_close(single[0], together[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("strength", "stages"), [(0.95, 3), (0.7, 2), (0.2, 1)])
def test_img2img_enters_at_any_stage(strength: float, stages: int) -> None:
    """At the level at which the stock pipeline enters its own schedule."""
    pipe, extra = make("img2img")
    levels: list[float] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: levels.append(float(given["timestep"][0])), with_kwargs=True
    )
    given = arguments(pipe, num_inference_steps=9) | {"image": extra["image"], "strength": strength}
    pipe(**given)
    steps, stock = len(levels) // 2, levels[0]
    levels.clear()
    handle = accelerate(pipe, spatial=PLAN)
    assert pipe(**given).images.isfinite().all()
    assert levels[0] == stock
    assert len(handle.report.stages) == stages and handle.report.completed
    assert handle.report.baseline_steps == steps and handle.report.flop_ratio >= 1.0


def test_img2img_with_little_noise_stays_near_its_image() -> None:
    """The forward process on coarse tokens starts from the image's block means at the stage's own level."""
    pipe, extra = make("img2img")
    latent = pipe._encode_vae_image(pipe.image_processor.preprocess(extra["image"]), torch.Generator().manual_seed(0))
    noise = torch.randn_like(latent)
    with accelerate(pipe, spatial=PLAN).call():
        pipe.scheduler.set_timesteps(9, sigmas=None, mu=0.5)
        noisy = pipe.scheduler.scale_noise(latent, pipe.scheduler.timesteps[:1], noise)
    low = torch.nn.functional.avg_pool2d(noise, 2) * 2
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(noisy, 2), low)


def test_latents_with_a_start_in_mid_schedule_are_refused() -> None:
    pipe, extra = make("img2img")
    accelerate(pipe, spatial=PLAN)
    given = torch.randn(1, TOKENS, 16)
    with pytest.raises(ValueError, match=r"latents= together with a start in mid-schedule \(strength < 1\)"):
        pipe(**arguments(pipe, latents=given), image=extra["image"], strength=0.8)


def test_the_controlnet_sees_the_reduced_tokens() -> None:
    pipe, extra = make("controlnet")
    seen: list[tuple[int, int]] = []
    pipe.controlnet.controlnet_x_embedder.register_forward_hook(
        lambda module, args, output: seen.append(args[0].shape[1])
    )
    handle = accelerate(pipe, spatial=PLAN)
    pipe(**arguments(pipe), **extra)
    assert seen == [step.tokens for step in handle.report.steps]
    with_control = pipe(**arguments(pipe), **extra).images
    without = pipe(**arguments(pipe), **extra, controlnet_conditioning_scale=0.0).images
    assert not torch.allclose(with_control, without, atol=1e-3)


def test_several_controlnets() -> None:
    nets = diffusers.FluxMultiControlNetModel([make_controlnet(), make_controlnet()])
    pipe = make_pipeline(diffusers.FluxControlNetPipeline, controlnet=nets)
    accelerate(pipe, spatial=PLAN)
    images = [random_image(), random_image()]
    result = pipe(**arguments(pipe), control_image=images, controlnet_conditioning_scale=[0.5, 0.5]).images
    assert result.isfinite().all()


def test_kontext_keeps_its_reference_tokens() -> None:
    pipe, extra = make("kontext")
    seen: list[int] = []
    pipe.transformer.x_embedder.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    handle = accelerate(pipe, spatial=PLAN)
    pipe(**arguments(pipe, true_cfg_scale=1.0), **extra)
    reference = seen[-1] - TOKENS
    assert reference > 0
    assert seen == [step.tokens + reference for step in handle.report.steps]


def test_a_pipeline_made_from_an_accelerated_one_is_stock() -> None:
    pipe, stock = make_pipeline(), make("img2img")[0]
    handle = accelerate(pipe, spatial=PLAN)
    other = diffusers.FluxImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    expected = stock(**arguments(stock), image=random_image(), strength=0.9).images
    assert torch.equal(other(**arguments(other), image=random_image(), strength=0.9).images, expected)
    assert handle.report is None
    accelerate(other, spatial=PLAN)
    assert other(**arguments(other), image=random_image(), strength=0.9).images.isfinite().all()
    assert handle.enabled and pipe(**arguments(pipe)).images.isfinite().all()
    assert handle.report.stages[0].tokens == TOKENS // 4
