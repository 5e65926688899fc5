"""Two denoisers of one pipeline, for high and for low noise levels (Wan 2.2): settings for each, and their boundary."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from torch import Tensor, nn

from ralu_cache import RALU, Adaptive, Forecast, SeaCache, TaylorSeer, ToCa, accelerate
from ralu_cache.history.trail import Trail
from ralu_cache.sweep.methods import parse_method
from ralu_cache.temporal.experts import expert_settings
from tests.pipelines import make_pipeline
from tests.wan_pipelines import (
    SIZES,
    block,
    make_unipc_pipeline,
    make_wan_image_pipeline,
    make_wan_pipeline,
    make_wan_transformer,
    videos,
)

BOUNDARY = 0.8
STEPS = 10
PLAN = RALU(steps=(2, 2, 4), ratio=0.25)


def make_pair() -> Any:
    return make_wan_pipeline(transformer_2=make_wan_transformer(1), boundary_ratio=BOUNDARY)


def make_unipc_pair() -> Any:
    pipe = make_pair()
    pipe.scheduler = make_unipc_pipeline().scheduler
    return pipe


def make_image_pair() -> Any:
    pipe = make_wan_image_pipeline()
    pipe.transformer_2 = copy.deepcopy(pipe.transformer)
    pipe.register_to_config(boundary_ratio=BOUNDARY)
    return pipe


def make_vace_pair() -> Any:
    """A pipeline without an adapter, whose blocks a probe finds."""
    torch.manual_seed(0)
    sizes = SIZES | {"vace_layers": [0], "vace_in_channels": 96}
    both = [WanVACETransformer3DModel(**sizes).eval() for _ in range(2)]
    return make_wan_pipeline(both[0], WanVACEPipeline, transformer_2=both[1], boundary_ratio=BOUNDARY)


def drawn(pipe: Any, **overrides: Any) -> Tensor:
    """Two small videos; one where a pipeline takes some time."""
    name = type(pipe).__name__
    slow = "ImageToVideo" in name or "VACE" in name
    given = videos((0,) if slow else (0, 1), num_inference_steps=STEPS, guidance_scale=2.5, num_frames=5, **overrides)
    if "ImageToVideo" in name:
        given["image"] = block()
    if slow:
        given["generator"] = given["generator"][0]
    return pipe(**given, return_dict=False)[0]


def counted(pipe: Any) -> dict[str, list[int]]:
    """How many samples ran through the last block of each, call by call."""
    ran: dict[str, list[int]] = {"transformer": [], "transformer_2": []}
    for name, seen in ran.items():
        *_, inside = (m for m in getattr(pipe, name).blocks[-1].modules() if isinstance(m, nn.Linear))
        inside.register_forward_hook(lambda _, args, out, seen=seen: seen.append(len(out)))
    return ran


@pytest.mark.parametrize("make", [make_pair, make_unipc_pair, make_image_pair, make_vace_pair])
def test_each_reuses_by_its_own_setting(make: Callable[[], Any]) -> None:
    pipe = make()
    stock = drawn(pipe)
    ran = counted(pipe)
    with accelerate(pipe, temporal={"high": None, "low": None}):
        assert torch.equal(drawn(pipe), stock), "nothing is reused"
    every = {name: len(calls) for name, calls in ran.items()}
    assert all(every.values())
    found = {}
    for high, low in ((TaylorSeer(3), None), (None, "taylorseer:3"), (SeaCache(9.0), "taylorseer:2")):
        for calls in ran.values():
            calls.clear()
        with accelerate(pipe, temporal={"high": high, "low": low}) as handle:
            found[high is None, low is None] = drawn(pipe)
        assert (len(ran["transformer"]) < every["transformer"]) is (high is not None)
        assert (len(ran["transformer_2"]) < every["transformer_2"]) is (low is not None)
        assert handle.report.completed and handle.report.temporal.startswith("high=")
        assert handle.report.temporal.endswith(f"low={low or 'none'}")
    assert torch.equal(drawn(pipe), stock)
    assert not torch.equal(found[False, True], found[True, False])


def test_one_setting_is_that_of_both() -> None:
    pipe = make_pair()
    for setting in (TaylorSeer(2), SeaCache(0.6), Adaptive(3, ratio=0.3), ToCa(3, 0.4, first=1)):
        with accelerate(pipe, spatial=PLAN, temporal=setting):
            one = drawn(pipe)
        with accelerate(pipe, spatial=PLAN, temporal={"high": setting, "low": setting}):
            assert torch.equal(drawn(pipe), one)


def test_kinds_of_caches_may_differ() -> None:
    pipe = make_pair()
    with accelerate(pipe, temporal={"high": ToCa(3, 0.4, first=1), "low": Adaptive(2, ratio=0.3)}) as handle:
        assert drawn(pipe).isfinite().all() and handle.report.completed
    with accelerate(pipe, temporal={"high": "taylorseer:2"}, spatial=PLAN, guidance="early") as handle:
        assert drawn(pipe).isfinite().all() and handle.report.temporal == "high=taylorseer:2;low=none"
    copied = copy.deepcopy(pipe)
    assert "Accelerated" not in type(copied).__name__


@pytest.mark.parametrize("setting", [Forecast(4, ramp=False), Forecast(4, order=0, quantity="clean")])
def test_forecasts_begin_anew_at_the_boundary(setting: Forecast) -> None:
    """What the second gives does not depend on what the first gave, but for where it brought the latents."""
    pipe, seen = make_pair(), []
    ran = counted(pipe)
    with accelerate(pipe, temporal=setting) as handle:
        drawn(pipe, callback_on_step_end=lambda pipe, i, t, given: seen.append(given["latents"].clone()) or given)
    steps = handle.report.steps
    first_low = next(step.index for step in steps if step.sigma < BOUNDARY)
    assert steps[first_low].calls and ran["transformer"] and ran["transformer_2"]
    again = make_pair()

    def enter(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": seen[first_low - 1]} if i == first_low - 1 else given

    torch.manual_seed(5)
    for parameter in again.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with accelerate(again, temporal=setting):
        other: list[Tensor] = []
        drawn(again, callback_on_step_end=lambda pipe, i, t, given: other.append(
            enter(pipe, i, t, given)["latents"].clone()) or enter(pipe, i, t, given))  # fmt: skip
    torch.testing.assert_close(other[-1], seen[-1], rtol=1e-4, atol=1e-4)


def test_forecasts_of_other_schedulers_begin_anew_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """UniPC's own history is not touched: it is as in stock."""
    read: list[tuple[float, list[float]]] = []
    stock = Trail.forecast

    def forecast(trail: Trail, at: float, *how: Any) -> Tensor:
        read.append((at, trail.levels))
        return stock(trail, at, *how)

    monkeypatch.setattr(Trail, "forecast", forecast)
    with accelerate(pipe := make_unipc_pair(), temporal=Forecast(4, ramp=False)):
        drawn(pipe)
    assert {at < BOUNDARY for at, _ in read} == {True, False}
    assert all((at < BOUNDARY) == (level < BOUNDARY) for at, levels in read for level in levels)


def test_forecasts_with_hooks_begin_anew_too() -> None:
    """On stages, and where the run decides."""
    pipe = make_pair()
    for settings in ({"spatial": PLAN, "temporal": Forecast(9, ramp=False)}, {"temporal": Forecast(tolerance=9.0)}):
        with accelerate(pipe, **settings) as handle:
            assert drawn(pipe).isfinite().all()
        steps = handle.report.steps
        turns = [now for before, now in pairwise(steps) if (before.sigma < BOUNDARY) != (now.sigma < BOUNDARY)]
        assert turns and all(step.calls and not step.forecast for step in turns)


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (make_pair, {"temporal": {"hi": "seacache"}}, r"must name 'high', 'low' or both, each once.*seacache:0.3"),
        (make_pair, {"temporal": {}}, "must name 'high', 'low' or both"),
        (make_pair, {"temporal": "high=seacache;high=toca"}, "each once"),
        (make_pair, {"temporal": {"high": "forecast:3"}}, r"'high': 'forecast:3'\} forecasts whole predictions"),
        (make_pair, {"temporal": {"low": SeaCache(0.3, reuse="prediction")}}, "forecasts whole predictions"),
        (make_pair, {"temporal": {"low": "seecache"}}, "unknown temporal policy 'seecache'"),
        (make_pair, {"spatial": {"high": "ralu", "low": None}}, "one plan goes over all noise levels"),
        (make_wan_pipeline, {"temporal": {"high": "seacache"}}, "this WanPipeline has one; leave out 'high' and"),
        (make_pipeline, {"temporal": {"low": "seacache"}}, "this FluxPipeline has one"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], settings: dict[str, Any], told: str) -> None:
    pipe = make()
    with pytest.raises(ValueError, match=told):
        accelerate(pipe, **settings)
    assert not pipe.transformer._forward_pre_hooks


def test_settings_in_one_line() -> None:
    """As the command line takes them."""
    assert expert_settings("seacache:0.7,order=0") is None is expert_settings(None) is expert_settings(SeaCache())
    line = "high=seacache:0.7,order=0;low=none"
    assert expert_settings(line) == {"high": "seacache:0.7,order=0", "low": None}
    assert parse_method(f"ralu-4x+{line}+guidance=early").temporal == line
    with pytest.raises(ValueError, match="unknown temporal policy 'x'"):
        parse_method("ralu-4x+high=x")
