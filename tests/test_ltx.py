"""What is LTX-Video's own: no stages, and a fine grid that is read off the call."""

import pytest
import torch

from ralu_cache import RALU, ToCa, accelerate
from ralu_cache.adapters import find_adapter
from tests.pipelines_ltx import COLUMNS, FRAMES, ROWS, ltx_videos, make_ltx_pipeline


def test_what_it_lacks_is_refused_with_the_reason_and_with_what_works() -> None:
    pipe = make_ltx_pipeline()
    reason = r"ltx, which lacks tokens: a token is 32 x 32 pixels .*; what works with it: guidance=; temporal policies"
    with pytest.raises(ValueError, match=reason):
        accelerate(pipe, spatial="ralu")
    with pytest.raises(ValueError, match="lacks tokens"):
        accelerate(pipe, spatial=RALU(steps=(2, 2, 2)), temporal="teacache")
    with pytest.raises(ValueError, match="score 'attention' is not supported for LTXAttention"):
        accelerate(pipe, temporal=ToCa(score="attention"))
    assert not pipe.transformer._forward_pre_hooks


def test_padding_counts_for_nothing() -> None:
    pipe = make_ltx_pipeline()
    given = ltx_videos((0, 1), guidance_scale=1.0)
    words = given["prompt_embeds"].clone()
    words[given["prompt_attention_mask"] == 0] = 7.0
    with accelerate(pipe, temporal=ToCa(3, 0.4, first=1)):
        first, second = (
            pipe(**ltx_videos((0, 1), guidance_scale=1.0, prompt_embeds=text)).frames
            for text in (given["prompt_embeds"], words)
        )
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_the_report_knows_frames_rows_and_columns() -> None:
    pipe = make_ltx_pipeline()
    with accelerate(pipe, temporal="seacache") as handle:
        pipe(**ltx_videos((0,)))
    assert handle.report is not None and handle.report.size == (FRAMES * ROWS, COLUMNS)
    assert find_adapter(pipe).family == "ltx"
