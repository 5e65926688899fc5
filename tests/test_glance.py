"""A handle at a glance."""

import gc
import re
from typing import Any

import pytest

from ralu_cache import accelerate
from tests.pipelines import call_arguments, make_pipeline


def test_it_says_what_is_on_and_what_the_last_call_did() -> None:
    pipe = make_pipeline()
    handle = accelerate(pipe, spatial="ralu-7x", temporal="seacache:0.4")
    assert repr(handle) == (
        "<Acceleration of FluxPipeline: spatial='ralu-7x', temporal='seacache:0.4'; on; last call: no call yet>"
    )
    assert "no call yet" in handle._repr_html_() and "title=" not in handle._repr_html_()
    pipe(**call_arguments())
    report = handle.report
    assert f"{report.flop_ratio:.2f}x fewer FLOPs" in repr(handle) and f"{len(report.steps)} steps in" in repr(handle)
    html = handle._repr_html_()
    bars = re.findall(r'title="step \d+: sigma [\d.]+, (\d+) tokens, (\d+)% computed"', html)
    assert [int(tokens) for tokens, _ in bars] == [step.tokens for step in report.steps]
    assert [int(done) for _, done in bars] == [round(100 * (1 - step.reused_share)) for step in report.steps]
    handle.disable()
    assert "off, the pipeline is stock" in repr(handle) and "FluxPipeline" in handle._repr_html_()
    del pipe
    gc.collect()
    assert "its pipeline is gone" in repr(handle)


def test_a_call_that_was_cut_short_says_so(pipe: Any) -> None:
    def fails(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("stop")

    handle = accelerate(pipe, temporal="forecast:2")
    with pytest.raises(RuntimeError, match="stop"):
        pipe(**call_arguments(), callback_on_step_end=fails)
    assert "cut short" in repr(handle)


def test_texts_of_users_are_escaped(pipe: Any) -> None:
    from ralu_cache.report.glance import Glance

    assert "<b>x" not in Glance("Pipe", True, {"spatial": "<b>x"}, None).html()
