"""What is FLUX.2's own: latents that are normalised place by place, reference pictures, ids of text and image."""

from functools import partial
from typing import Any

import diffusers
import torch

from ralu_cache import RALU, accelerate
from ralu_cache.engine.autoencoder import autoencoder_of
from tests.adapter_conformance import (
    COUNTED,
    Family,
    check_a_permuted_ribbon_is_the_stock_forward,
    check_flops_are_those_that_a_counter_counts,
)
from tests.pipelines import random_image
from tests.pipelines_flux2 import flux2_pictures, make_flux2_pipeline, packed

SMALL = partial(flux2_pictures, height=32, width=48)
GUIDED, UNGUIDED = {"guidance_scale": 2.5}, {"guidance_scale": 1.0}
EDIT = Family(
    "flux2-edit", make_flux2_pipeline, partial(SMALL, image=random_image(64, 64)), 96, GUIDED, UNGUIDED, held=packed
)


def of_dev(samples: Any, **given: Any) -> dict[str, Any]:
    return {name: value for name, value in SMALL(samples, **given).items() if not name.startswith("negative")}


def test_the_autoencoder_undoes_the_normalisation_of_each_place() -> None:
    pipe = make_flux2_pipeline(plain=False)
    drawn = pipe(**SMALL((0,)), **UNGUIDED, return_dict=False)[0]  # raw latents (B, C, H, W)
    codec = autoencoder_of(pipe)
    assert codec.decode is not None and codec.encode is not None
    held: list[Any] = []
    pipe(**SMALL((0,)), **UNGUIDED, callback_on_step_end=lambda p, i, t, given: held.append(given["latents"]) or given)
    canvas = torch.nn.functional.pixel_shuffle(held[-1].transpose(1, 2).unflatten(2, (8, 12)), 2)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(canvas), pipe.vae.decode(drawn).sample, atol=1e-5, rtol=1e-5)
        picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
        encoded = pipe._encode_vae_image(picture, None)
        torch.testing.assert_close(codec.encode(picture), torch.nn.functional.pixel_shuffle(encoded, 2))


def test_stages_may_look_at_the_picture() -> None:
    pipe = make_flux2_pipeline(plain=False)
    with accelerate(pipe, spatial=RALU.paper("ralu-7x")) as handle:
        assert pipe(**SMALL((0,)), **UNGUIDED, return_dict=False)[0].isfinite().all()
    assert handle.report is not None and handle.report.completed


def test_reference_pictures_ride_along() -> None:
    check_a_permuted_ribbon_is_the_stock_forward(EDIT)
    check_flops_are_those_that_a_counter_counts(EDIT, COUNTED[-1:])


def test_the_guidance_of_dev_is_counted() -> None:
    make = partial(make_flux2_pipeline, diffusers.Flux2Pipeline)
    check_flops_are_those_that_a_counter_counts(Family("flux2-dev", make, of_dev, 96, GUIDED, UNGUIDED), COUNTED[1:2])


def test_text_as_long_as_the_image_keeps_its_own_places() -> None:
    words = torch.randn(2, 96, 32, generator=torch.Generator().manual_seed(0))
    prompts = partial(SMALL, prompt_embeds=words, negative_prompt_embeds=-words)
    check_a_permuted_ribbon_is_the_stock_forward(
        Family("flux2-words", make_flux2_pipeline, prompts, 96, GUIDED, UNGUIDED, held=packed)
    )
