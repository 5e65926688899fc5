"""What is particular to Qwen-Image 2.1: what stands before the image is computed once, and its tokens come in fours."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ralu_cache import RALU, Guidance, TaylorSeer, accelerate
from tests.adapter_conformance import (
    COUNTED,
    Family,
    check_a_permuted_ribbon_is_the_stock_forward,
    check_flops_are_those_that_a_counter_counts,
    check_off_is_stock,
)
from tests.pipelines import random_image
from tests.pipelines_qwen21 import make_qwen21_pipeline, qwen21_pictures

GUIDED, UNGUIDED = {"true_cfg_scale": 2.5}, {"true_cfg_scale": 1.0}
PLAN = RALU(steps=(2, 2, 2))
REUSE = TaylorSeer(interval=2, first=1, transition="inherit")


def draw(pipe: Any, samples: Sequence[int] = (0, 1), **overrides: Any) -> Tensor:
    picture: Tensor = pipe(**qwen21_pictures(samples, **(GUIDED | overrides)), return_dict=False)[0]
    return picture


def kept(module: nn.Module) -> list[int]:
    """How many tokens go through a module in each of its calls from now on."""
    seen: list[int] = []
    module.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    return seen


class WithPictures:
    """In place of the encoding of a prompt about a picture of 8x8 tokens: two words, its 16 slots, five words."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def __call__(self, prompt_embeds: Tensor, num_images_per_prompt: int, **_: Any) -> tuple[Tensor, None, Tensor]:
        slots = torch.zeros(len(prompt_embeds), 23, dtype=torch.bool)
        slots[:, 2:18] = True
        words = torch.zeros(len(prompt_embeds), 23, prompt_embeds.shape[2])
        words[~slots] = prompt_embeds.flatten(0, 1)
        return words, None, slots


def make_editing() -> Any:
    pipe = make_qwen21_pipeline()
    pipe.encode_prompt = WithPictures(pipe)
    return pipe


def test_a_picture_to_edit_rides_along_in_the_first_call() -> None:
    pictures = partial(qwen21_pictures, image=random_image(128, 128), output_resolution=128)
    family = Family("edit", make_editing, pictures, 96, GUIDED, UNGUIDED, layered=False)
    check_a_permuted_ribbon_is_the_stock_forward(family)
    check_flops_are_those_that_a_counter_counts(family, COUNTED[:2])
    check_off_is_stock(family)


@pytest.mark.parametrize("temporal", [None, REUSE], ids=["stages", "reuse"])
def test_without_the_pipelines_own_cache_it_is_the_same_picture(temporal: Any) -> None:
    pipe = make_qwen21_pipeline()
    with accelerate(pipe, spatial=PLAN, temporal=temporal) as handle:
        expected, flops = draw(pipe), handle.report.flops
        found = draw(pipe, use_kv_cache=False)
        assert handle.report.flops > flops
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_text_is_computed_once_a_prompt() -> None:
    pipe = make_qwen21_pipeline()
    seen = kept(pipe.transformer.transformer_blocks[0].attn.to_q)
    with accelerate(pipe, spatial=PLAN):
        draw(pipe)
    assert seen == [24 + 7] * 2 + [24] * 2 + [48] * 4 + [96] * 4, "7 words, and 45 tokens filled up to whole slots"


def test_what_fills_a_slot_up_counts_for_nothing() -> None:
    pipe = make_qwen21_pipeline()

    def other(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        filled, rest = args[0].split([45, args[0].shape[1] - 45], 1) if args[0].shape[1] == 48 else (None, None)
        return None if filled is None else (torch.cat([filled, torch.full_like(rest, 7.0)], 1),)

    for own_cache in (True, False):
        with accelerate(pipe, spatial=PLAN):
            expected = draw(pipe, use_kv_cache=own_cache)
            hook = pipe.transformer.img_in.register_forward_pre_hook(other)
            found = draw(pipe, use_kv_cache=own_cache)
            hook.remove()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_guidance_that_begins_late_finds_its_text() -> None:
    """The call that would have kept it was left out; stock's own would raise."""
    pipe = make_qwen21_pipeline()
    with accelerate(pipe, guidance=Guidance(start=0.5)) as handle:
        late = draw(pipe)
        assert 0 < handle.report.guided_steps < len(handle.report.steps)
        torch.testing.assert_close(draw(pipe, (1,))[0], late[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(late, draw(pipe, **UNGUIDED), atol=1e-3)


def test_flex_attention_is_refused_where_the_text_would_see_what_fills_up() -> None:
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21FlexAttnProcessor

    pipe = make_qwen21_pipeline()
    pipe.transformer.set_attn_processor(QwenImage21FlexAttnProcessor())
    odd = {"height": 96, "width": 160}  # 6x10 tokens, 15 of them coarse
    with accelerate(pipe, spatial=PLAN), pytest.raises(ValueError, match=r"15 tokens, .* QwenImage21FlexAttnProcessor"):
        draw(pipe, **odd)


def test_another_patch_size_is_refused() -> None:
    pipe = make_qwen21_pipeline(patch_size=2)
    with pytest.raises(ValueError, match=r"patch_size 2 is not supported: expected 1"):
        accelerate(pipe, spatial=PLAN)
