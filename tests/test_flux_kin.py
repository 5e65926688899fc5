"""What is particular to FLUX.1's kin: Chroma's padding counts for nothing, LongCat-Image's pictures begin elsewhere."""

from functools import partial
from typing import Any

import pytest
import torch

from ralu_cache import RALU, Adaptive, ToCa, accelerate
from tests.adapter_conformance import (
    COUNTED,
    Family,
    check_a_permuted_ribbon_is_the_stock_forward,
    check_flops_are_those_that_a_counter_counts,
)
from tests.pipelines import random_image
from tests.pipelines_flux_kin import (
    LongCatImageEditPipeline,
    chroma_pictures,
    longcat_pictures,
    make_chroma_pipeline,
    make_longcat_pipeline,
)

GUIDED, UNGUIDED = {"guidance_scale": 2.5}, {"guidance_scale": 1.0}


@pytest.mark.parametrize(
    "temporal", [None, ToCa(3, 0.4, first=1, score="attention"), Adaptive(3, ratio=0.3, score="value")],
    ids=["stages", "toca", "adaptive"],
)  # fmt: skip
def test_padding_counts_for_nothing(temporal: Any) -> None:
    pipe = make_chroma_pipeline()
    given = partial(chroma_pictures, (0, 1, 2), height=32, width=48, guidance_scale=1.0, return_dict=False)
    words = given()["prompt_embeds"].clone()
    padded = ~given()["prompt_attention_mask"]
    assert padded.any()
    with accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions="text-attention"), temporal=temporal):
        expected = pipe(**given())[0]
        words[padded] = 7.0
        torch.testing.assert_close(pipe(**given(prompt_embeds=words))[0], expected, atol=1e-5, rtol=1e-5)


def test_a_picture_to_edit_rides_along() -> None:
    pictures = partial(longcat_pictures, image=random_image(32, 48))

    def given(samples: Any, **overrides: Any) -> dict[str, Any]:
        unknown = ("height", "width", "enable_prompt_rewrite")
        return {name: value for name, value in pictures(samples, **overrides).items() if name not in unknown}

    family = Family("edit", partial(make_longcat_pipeline, LongCatImageEditPipeline), given, 96, GUIDED, UNGUIDED)
    check_a_permuted_ribbon_is_the_stock_forward(family)
    check_flops_are_those_that_a_counter_counts(family, COUNTED[-1:])
