"""What cannot work is refused by name, before anything was changed; what is slower than stock is said once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import cycle
from typing import Any

import diffusers
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, FirstBlockCacheConfig
from diffusers.hooks import apply_first_block_cache

from ralu_cache import RALU, TeaCache, accelerate
from tests import surroundings
from tests.pipelines import make_pipeline
from tests.surroundings import (
    FAMILIES,
    POLICIES,
    Family,
    Setting,
    check_accelerated,
    each_family,
    fast,
    few,
    half,
    stock,
)

one_thread = surroundings.one_thread


def untouched(pipe: Any, cls: type) -> None:
    assert type(pipe) is cls
    for module in pipe.transformer.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks


# ---- pipelines


@pytest.mark.parametrize("temporal", [*POLICIES, None])
@pytest.mark.parametrize("name", ["VisualClozeGenerationPipeline", "VisualClozePipeline"])
def test_pipelines_that_no_adapter_can_serve(name: str, temporal: str | None) -> None:
    if name == "VisualClozeGenerationPipeline" and temporal in ("forecast", "teacache", "seacache", "taylorseer"):
        pytest.skip("which needs none")
    cls = getattr(diffusers, name)
    parts = make_pipeline(diffusers.FluxFillPipeline, in_channels=48).components
    pipe = cls(**parts, resolution=32)
    model = parts["transformer"]
    with pytest.raises(TypeError, match=name):
        accelerate(pipe, spatial=None if temporal else "ralu", temporal=POLICIES.get(temporal or ""))
    assert type(pipe) is cls
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_pipeline_without_a_transformer_of_a_known_family() -> None:
    for wrong in (object(), torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="FluxPipeline"):
            accelerate(wrong, temporal="seacache")


# ---- a second accelerate


WRONG: dict[str, Callable[[Any], Any]] = {
    "policy": lambda pipe: accelerate(pipe, temporal="unheard-of"),
    "plan": lambda pipe: accelerate(pipe, spatial="unheard-of"),
    "both": lambda pipe: accelerate(pipe, speedup=4, spatial="ralu"),
    "value": lambda pipe: accelerate(pipe, temporal="teacache:minus"),
    "type": lambda pipe: accelerate(pipe, temporal=TeaCache),
}


@few
def test_a_refused_second_accelerate_leaves_the_first_in_force(setting: Setting) -> None:
    family = setting.family
    pipe = family.make()
    with accelerate(pipe, **setting.options) as handle:
        assert torch.equal(family.run(pipe), fast(setting))
        for name, wrong in WRONG.items():
            with pytest.raises((TypeError, ValueError)):
                wrong(pipe)
            assert handle.enabled, name
        assert torch.equal(family.run(pipe), fast(setting))
        check_accelerated(setting, handle.report)
    assert torch.equal(family.run(pipe), stock(family.name))


@each_family
def test_a_second_accelerate_that_the_model_refuses_leaves_the_first_in_force(family: Family) -> None:
    cls = type(family.make())
    pipe = family.make()
    with accelerate(pipe, spatial=surroundings.PLAN) as handle:
        expected = family.run(pipe)
        if family.name != "sd3":  # which has no caches
            pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
            with pytest.raises(ValueError, match="stack"):
                accelerate(pipe, temporal="seacache")
            pipe.transformer.disable_cache()
        own = pipe.scheduler
        pipe.scheduler = EulerAncestralDiscreteScheduler()
        with pytest.raises(TypeError, match="EulerAncestralDiscreteScheduler"):
            accelerate(pipe, temporal="seacache")
        pipe.scheduler = own
        assert handle.enabled and torch.equal(family.run(pipe), expected)
    untouched(pipe, cls)


@each_family
def test_a_refused_first_accelerate_changes_nothing(family: Family) -> None:
    pipe = family.make()
    cls, own = type(pipe), pipe.scheduler
    for wrong in WRONG.values():
        with pytest.raises((TypeError, ValueError)):
            wrong(pipe)
    assert pipe.scheduler is own
    untouched(pipe, cls)
    assert torch.equal(family.run(pipe), stock(family.name))


# ---- diffusers' own caches

caching = pytest.mark.parametrize("family", [FAMILIES[name] for name in ("flux", "qwen", "wan")], ids=str)  # not SD3


@pytest.mark.parametrize(("name", "policy"), [*zip(cycle(("wan", "flux", "qwen")), POLICIES, strict=False)])
def test_diffusers_own_cache_enabled_later_is_refused_at_the_call(name: str, policy: str) -> None:
    setting = Setting(family := FAMILIES[name], policy, False)
    pipe = family.make()
    with accelerate(pipe, **setting.options) as handle:
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.05))
        with pytest.raises(ValueError, match="stack"):
            family.run(pipe)
        pipe.transformer.disable_cache()
        assert torch.equal(family.run(pipe), fast(setting))
        check_accelerated(setting, handle.report)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    cached = family.run(pipe)
    assert cached.isfinite().all(), "once we are off, it is theirs"
    pipe.transformer.disable_cache()
    assert torch.equal(family.run(pipe), stock(family.name))


def test_diffusers_own_cache_that_a_function_applied_is_refused() -> None:
    """The model itself does not know of it: `is_cache_enabled` is False."""
    pipe = FAMILIES["flux"].make()
    with accelerate(pipe, temporal="taylorseer:3"):
        apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.05))
        with pytest.raises(ValueError, match="own FBCHeadBlockHook is enabled"):
            FAMILIES["flux"].run(pipe)
    assert FAMILIES["flux"].run(pipe).isfinite().all(), "once we are off, it is theirs"
    with pytest.raises(ValueError, match="do not stack"):
        accelerate(pipe, temporal="taylorseer:3")


@caching
def test_diffusers_own_cache_goes_with_stages_alone(family: Family) -> None:
    pipe = family.make()
    with accelerate(pipe, spatial=surroundings.PLAN) as handle:
        plain = family.run(pipe)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        torch.testing.assert_close(family.run(pipe), plain, atol=surroundings.CLOSE, rtol=surroundings.CLOSE)
        check_accelerated(Setting(family, "none", True), handle.report)
    pipe.transformer.disable_cache()
    assert torch.equal(family.run(pipe), stock(family.name))


# ---- slower than stock


@each_family
def test_a_setting_that_is_slower_than_stock_says_so_once(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    pipe = family.make()
    with caplog.at_level(logging.WARNING, "ralu_cache"), accelerate(pipe, spatial=RALU(steps=(5, 6, 7))) as handle:
        for _ in range(2):
            family.run(pipe, num_inference_steps=4)
            assert [notice for notice in handle.report.notices if "slower" in notice]
            assert handle.report.flop_ratio < 1
        assert len([record for record in caplog.records if "slower" in record.getMessage()]) == 1
        family.run(pipe, num_inference_steps=50)
        assert handle.report.flop_ratio > 1
        assert not [notice for notice in handle.report.notices if "slower" in notice]


@half
def test_a_setting_that_is_faster_does_not_say_so(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    family = setting.family
    pipe = family.make()
    with caplog.at_level(logging.WARNING, "ralu_cache"), accelerate(pipe, **setting.options) as handle:
        family.run(pipe)
        assert handle.report.flop_ratio > 1
    assert not [record for record in caplog.records if "slower" in record.getMessage()]
    assert not [notice for notice in handle.report.notices if "slower" in notice]
