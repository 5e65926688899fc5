"""What is replaced after `accelerate()` counts as if it had been there before: weights, processors, whole components.

An outcome is a picture, or the type of the error that was raised: what is refused before is refused after.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from ralu_cache import RALU, TaylorSeer, accelerate
from tests import surroundings
from tests.pipelines import make_transformer
from tests.surroundings import (
    CLOSE,
    FAMILIES,
    Family,
    Setting,
    add_lora,
    check_accelerated,
    each_family,
    fast,
    few,
    forward,
    other_few,
    stock,
    stock_forward,
    these,
)
from tests.wan_pipelines import make_wan_transformer

one_thread = surroundings.one_thread


Change = Callable[[Any], Any]


def outcome(draw: Callable[[], Tensor]) -> Tensor | type[Exception]:
    try:
        return draw()
    except (ValueError, TypeError, RuntimeError) as error:
        return type(error)


def same(found: Tensor | type[Exception], expected: Tensor | type[Exception]) -> None:
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)
    else:
        assert found is expected


def check_before_or_after(setting: Setting, change: Change, options: dict[str, Any] | None = None) -> Any:
    """A change before `accelerate`, and after it or after a call; then what is left is the stock pipeline, changed."""
    family = setting.family
    own, options = options is None, options or setting.options
    changed = family.make()
    change(changed)
    plain = family.run(changed)

    def accelerated() -> Tensor:
        with accelerate(changed, **options):
            return family.run(changed)

    expected = outcome(accelerated)
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    pipe = family.make()
    with accelerate(pipe, **options) as handle:
        if setting.odd:
            family.run(pipe)
        change(pipe)
        same(outcome(lambda: family.run(pipe)), expected)
        if own and isinstance(expected, Tensor):
            check_accelerated(setting, handle.report)
    torch.testing.assert_close(family.run(pipe), plain, atol=CLOSE, rtol=CLOSE)
    return pipe, plain, expected


# ---- LoRA


@other_few
def test_lora_loaded_after(setting: Setting) -> None:
    _, plain, expected = check_before_or_after(setting, add_lora)
    assert isinstance(expected, Tensor)
    assert not torch.allclose(plain, stock(setting.family.name), atol=1e-3)


@these(
    ("flux", "toca", False), ("sd3", "toca", True), ("qwen", "adaptive", True), ("wan", "adaptive", False),
)  # fmt: skip
def test_lora_fused_swapped_and_unloaded_while_accelerated(setting: Setting) -> None:
    family = setting.family
    pipe, other = family.make(), family.make()
    with accelerate(other, **setting.options):
        add_lora(other)
        first = family.run(other)
    with accelerate(pipe, **setting.options) as handle:
        family.run(pipe)
        add_lora(pipe)
        same(family.run(pipe), first)
        pipe.transformer.fuse_lora()
        same(family.run(pipe), first)
        pipe.transformer.unfuse_lora()
        pipe.transformer.disable_adapters()
        same(family.run(pipe), fast(setting))
        pipe.transformer.enable_adapters()
        same(family.run(pipe), first)
        add_lora(pipe, "b")
        pipe.transformer.set_adapters(["a", "b"], [1.0, 0.0])
        same(family.run(pipe), first)
        pipe.transformer.delete_adapters(["a", "b"])
        same(family.run(pipe), fast(setting))
        pipe.transformer.unload_lora()
        same(family.run(pipe), fast(setting))
        check_accelerated(setting, handle.report)
    same(family.run(pipe), stock(family.name))


@each_family
def test_lora_with_outputs_of_each_layer(family: Family) -> None:
    _, _, expected = check_before_or_after(
        Setting(family, "taylorseer", False), add_lora, {"temporal": TaylorSeer(3, per_layer=True)}
    )
    assert isinstance(expected, Tensor)


# ---- parts of the transformer


def stock_processors(pipe: Any) -> None:
    """New ones of the same classes."""
    model = pipe.transformer
    model.set_attn_processor({name: type(processor)() for name, processor in model.attn_processors.items()})


def louder(processor: Any) -> Any:
    """An attention processor of the user's own: what the stock one gives, and half as much again."""
    cls = type(processor)

    class Louder(cls):
        @wraps(cls.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = super().__call__(*args, **kwargs)
            return tuple(1.5 * part for part in found) if isinstance(found, tuple) else 1.5 * found

    return Louder()


def own_processors(pipe: Any) -> None:
    (family,) = (each for each in FAMILIES.values() if type(each.make().transformer) is type(pipe.transformer))
    stock_ones = family.make().transformer.attn_processors
    pipe.transformer.set_attn_processor({name: louder(processor) for name, processor in stock_ones.items()})


def fused(pipe: Any) -> None:
    pipe.transformer.fuse_qkv_projections()


def backend(pipe: Any) -> None:
    pipe.transformer.set_attention_backend("_native_math")


ATTENTION = [
    (family, change, ("teacache", "toca", "adaptive", "per layer")[(number + place) % 4])
    for number, family in enumerate(FAMILIES.values())
    for place, change in enumerate((own_processors, fused, backend))
    if (family.name, change) != ("sd3", fused)  # which stock SD3 with a second attention does not run
]


@pytest.mark.parametrize(
    ("family", "change", "policy"), ATTENTION, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_attention_changed_after(family: Family, change: Change, policy: str) -> None:
    options = {"temporal": TaylorSeer(3, per_layer=True)} if policy == "per layer" else None
    setting = Setting(family, "taylorseer" if options else policy, policy == "adaptive")
    before = {name: type(processor) for name, processor in family.make().transformer.attn_processors.items()}
    pipe, plain, _ = check_before_or_after(setting, change, options)
    if change is own_processors:
        names = {type(processor).__name__ for processor in pipe.transformer.attn_processors.values()}
        assert names == {"Louder"}
        assert not torch.allclose(plain, stock(family.name), atol=1e-4)
    if change is backend:
        assert {name: type(processor) for name, processor in pipe.transformer.attn_processors.items()} == before


@pytest.mark.parametrize(
    ("family", "policy"), [*zip(FAMILIES.values(), ("adaptive", "toca") * 2, strict=True)], ids=str
)
def test_processors_set_between_two_calls_are_the_users_afterwards(family: Family, policy: str) -> None:
    pipe = family.make()
    with accelerate(pipe, **(setting := Setting(family, policy, True)).options):
        assert torch.equal(family.run(pipe), fast(setting))
        given = family.make().transformer.attn_processors
        pipe.transformer.set_attn_processor(dict(given))  # which empties it
        assert torch.equal(family.run(pipe), fast(setting))
    assert torch.equal(family.run(pipe), stock(family.name))
    found = pipe.transformer.attn_processors
    assert [found[name] is processor for name, processor in given.items()] == [True] * len(given)


# ---- components


def other_transformer(family: Family) -> Any:
    if family.name == "wan":
        return make_wan_transformer(seed=4)
    model = make_transformer() if family.name == "flux" else family.make().transformer
    torch.manual_seed(4)
    for weight in model.parameters():
        weight.data += 0.3 * weight.data.std(correction=0) * torch.randn_like(weight)
    return model


@few
def test_another_transformer(setting: Setting) -> None:
    family = setting.family
    model = other_transformer(family)
    old: list[Any] = []

    def change(pipe: Any) -> None:
        old.append(pipe.transformer)
        pipe.transformer = model

    _, plain, expected = check_before_or_after(setting, change)
    assert isinstance(expected, Tensor) and not torch.allclose(plain, stock(family.name), atol=1e-2)
    for left in old:
        assert torch.equal(forward(family, left), stock_forward(family.name)), "the old one is stock"
        assert not (left._forward_pre_hooks or left._forward_hooks)
    assert not (model._forward_pre_hooks or model._forward_hooks)


@each_family
def test_the_old_transformer_may_be_gone(family: Family) -> None:
    pipe = family.make()
    with accelerate(pipe, **Setting(family, "toca", True).options):
        family.run(pipe)
        old, pipe.transformer = pipe.transformer, family.make().transformer
        old.to("meta")
        assert not torch.equal(family.run(pipe), stock(family.name))
    assert torch.equal(family.run(pipe), stock(family.name))


VAE_PLANS = {"regions": RALU(split=(3, 3, 3), regions="sobel"), "lift": RALU(split=(3, 3, 3), lift="pixel")}


WITH_VAE = [(name, plan) for name in FAMILIES for plan in VAE_PLANS if (name, plan) != ("wan", "lift")]


@pytest.mark.parametrize(("name", "plan"), WITH_VAE)
def test_another_autoencoder(name: str, plan: str) -> None:
    family = FAMILIES[name]
    other = family.make().vae
    torch.manual_seed(1)
    for weight in other.parameters():
        weight.data += 0.5 * torch.randn_like(weight)
    setting = Setting(family, "none", True)

    def change(pipe: Any) -> None:
        old, pipe.vae = pipe.vae, other
        old.to("meta")  # as an application frees it

    _, _, expected = check_before_or_after(setting, change, {"spatial": VAE_PLANS[plan]})
    with accelerate(pipe := family.make(), spatial=VAE_PLANS[plan]):
        if plan == "lift":
            assert not torch.allclose(family.run(pipe), expected, atol=1e-4), "which it is counts"


@pytest.mark.parametrize("plan", VAE_PLANS)
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_the_tiny_autoencoder(name: str, plan: str) -> None:
    """It gives latents at once, and no distribution."""
    family = FAMILIES[name]
    channels = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8))
    counts = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1))
    torch.manual_seed(0)
    tiny = AutoencoderTiny(latent_channels=4, upsampling_scaling_factor=2, **channels, **counts).eval()

    def change(pipe: Any) -> None:
        pipe.vae = tiny

    _, _, expected = check_before_or_after(Setting(family, "none", True), change, {"spatial": VAE_PLANS[plan]})
    assert isinstance(expected, Tensor)


# ---- the scheduler


def shifted(pipe: Any) -> None:
    pipe.scheduler.set_shift(5.0)


def configured(pipe: Any) -> None:
    """The usual idiom."""
    changes = {"base_shift": 0.9, "max_shift": 1.5, "shift": 5.0}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)


@other_few
def test_settings_of_the_scheduler(setting: Setting) -> None:
    family, change = setting.family, configured if setting.odd else shifted
    pipe, plain, expected = check_before_or_after(setting, change)
    assert isinstance(expected, Tensor)
    if change is configured or not pipe.scheduler.config.use_dynamic_shifting:
        assert not torch.allclose(plain, stock(family.name), atol=1e-2)
    own = pipe.scheduler
    with accelerate(pipe, **setting.options):
        accelerate(pipe, **setting.options)
        same(family.run(pipe), expected)
        assert pipe.scheduler is own and type(own) is FlowMatchEulerDiscreteScheduler
    assert pipe.scheduler is own and own.shift == 5.0


@each_family
def test_a_scheduler_that_cannot_be_served_is_refused_at_the_call(family: Family) -> None:
    pipe = family.make()
    own = pipe.scheduler
    with accelerate(pipe, **(setting := Setting(family, "taylorseer", True)).options):
        assert torch.equal(family.run(pipe), fast(setting))
        pipe.scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
        with pytest.raises((TypeError, ValueError, RuntimeError), match="DPMSolverMultistepScheduler"):
            family.run(pipe)
        pipe.scheduler = own
        assert torch.equal(family.run(pipe), fast(setting))
