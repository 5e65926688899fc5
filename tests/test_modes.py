"""Modes of PyTorch around a call: inference mode, dtypes, autocast, gradients, compilation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ralu_cache import SeaCache, TaylorSeer, TeaCache, accelerate
from tests import surroundings
from tests.surroundings import (
    FAMILIES,
    FEW,
    HALF,
    OTHER_FEW,
    PLAN,
    STAGED,
    STEPS,
    Family,
    Setting,
    check_accelerated,
    each_family,
    forward,
    own_loop,
    served,
    stock,
    stock_forward,
)

one_thread = surroundings.one_thread

NEVER = TeaCache(threshold=0.0)


# ---- inference mode


@pytest.mark.parametrize("setting", FEW + STAGED[1::2], ids=str)
def test_inference_mode_gives_the_same_picture(setting: Setting) -> None:
    """Around the call, around everything, and in turn with calls outside of it."""
    family = setting.family
    pipe = family.make()
    with accelerate(pipe, **setting.options) as handle:
        fast = family.run(pipe)
        with torch.inference_mode():
            assert torch.equal(family.run(pipe), fast)
            check_accelerated(setting, handle.report)
        assert torch.equal(family.run(pipe), fast)
    with torch.inference_mode():
        pipe = family.make()
        with accelerate(pipe, **setting.options):
            assert torch.equal(family.run(pipe), fast)
        assert torch.equal(family.run(pipe), stock(family.name))


@each_family
def test_a_callback_may_change_latents_in_inference_mode(family: Family) -> None:
    """In place, which tensors of that mode do not count."""
    pipe = family.make()

    def replace(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] + (0.5 if number == 5 else 0.0)}

    def in_place(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if number == 5:
            tensors["latents"] += 0.5
        return tensors

    for options in ({"temporal": "taylorseer:3"}, {"spatial": PLAN, "temporal": "taylorseer:3"}):
        with accelerate(pipe, **options):
            plain, expected = family.run(pipe), family.run(pipe, callback_on_step_end=replace)
            assert not torch.allclose(plain, expected, atol=0.01)
            with torch.inference_mode():
                for callback in (replace, in_place):
                    assert torch.equal(family.run(pipe, callback_on_step_end=callback), expected)


@each_family
def test_a_loop_of_ones_own_in_inference_mode(family: Family) -> None:
    pipe = family.make()
    with accelerate(pipe, **Setting(family, "taylorseer", True).options) as handle:
        with handle.call():
            fast = own_loop(family, pipe)
        with torch.inference_mode(), handle.call():
            assert torch.equal(own_loop(family, pipe), fast)
        assert served(handle.report)


# ---- dtypes


def cast(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


DTYPES = (torch.float16, torch.bfloat16, torch.float64)
TYPED = [(setting, DTYPES[number % 3]) for number, setting in enumerate(OTHER_FEW)]


@pytest.mark.parametrize(("setting", "dtype"), TYPED, ids=str)
def test_dtypes(setting: Setting, dtype: torch.dtype) -> None:
    family = setting.family
    pipe = family.make().to(dtype)
    given = cast(family.arguments(), dtype)

    def run() -> Tensor:
        generators = [torch.Generator().manual_seed(1)]
        return pipe(**given | {"generator": generators})[0]

    plain = run()
    with accelerate(pipe, **setting.options) as handle:
        fast = run()
        check_accelerated(setting, handle.report)
        assert fast.dtype == plain.dtype and fast.isfinite().all()
        with torch.inference_mode():
            assert torch.equal(run(), fast)
    with accelerate(pipe, temporal=NEVER):
        assert torch.equal(run(), plain)
    assert torch.equal(run(), plain)


@each_family
def test_autocast(family: Family) -> None:
    pipe = family.make()
    with torch.autocast("cpu", torch.bfloat16):
        plain = family.run(pipe)
        assert not torch.equal(plain, stock(family.name))
        with accelerate(pipe, temporal=NEVER):
            assert torch.equal(family.run(pipe), plain)
        for policy in ("taylorseer", "adaptive"):
            setting = Setting(family, policy, True)
            with accelerate(pipe, **setting.options) as handle:
                assert family.run(pipe).isfinite().all()
                check_accelerated(setting, handle.report)


@pytest.mark.parametrize("stages", [False, True], ids=["alone", "stages"])
@pytest.mark.parametrize(
    "policy", [TaylorSeer(2, order=2, first=1), SeaCache(99.0, order=1)], ids=["taylorseer", "seacache"]
)
def test_residuals_of_half_precision_that_change_fast(policy: Any, stages: bool) -> None:
    """Tens of thousands a few hundredths of a level apart: as a slope, or times two, more than float16 holds."""
    family = FAMILIES["flux"]
    pipe = family.make().to(torch.float16)
    count = itertools.count()

    def jump(hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return encoder_hidden_states, hidden_states + (30000.0 if next(count) % 2 else -30000.0)

    pipe.transformer.transformer_blocks[0].forward = jump
    given = cast(family.arguments(), torch.float16)
    with accelerate(pipe, spatial=PLAN if stages else None, temporal=policy) as handle:
        assert pipe(**given)[0].isfinite().all() and served(handle.report)


# ---- gradients


def gradient(family: Family, pipe: Any) -> Tensor:
    """Of the picture by the prompt."""
    given = family.arguments()
    given["prompt_embeds"] = given["prompt_embeds"].requires_grad_()
    type(pipe).__call__.__wrapped__(pipe, **given)[0].square().mean().backward()
    return given["prompt_embeds"].grad


@pytest.fixture(scope="module")
def differentiable(one_thread: None) -> dict[tuple[str, bool], tuple[Any, Tensor]]:
    """Each family's pipeline, without and with gradient checkpointing, and its stock gradient."""
    made = {}
    for family, checkpointed in itertools.product(FAMILIES.values(), (False, True)):
        pipe = family.make()
        if checkpointed:
            pipe.transformer.train().enable_gradient_checkpointing()
        made[family.name, checkpointed] = pipe, gradient(family, pipe)
    return made


@pytest.mark.parametrize(
    ("setting", "checkpointed"),
    [(setting, False) for setting in OTHER_FEW] + [(setting, True) for setting in HALF[::2]],
    ids=str,
)
def test_gradients_flow_or_are_refused(setting: Setting, checkpointed: bool, differentiable: Any) -> None:
    pipe, _ = differentiable[setting.family.name, checkpointed]
    with accelerate(pipe, **setting.options) as handle:
        try:
            found = gradient(setting.family, pipe)
        except (TypeError, ValueError) as error:
            assert "gradient" in str(error)
        else:
            check_accelerated(setting, handle.report)
            assert found is not None and found.isfinite().all() and found.any()
        assert setting.family.run(pipe).isfinite().all(), "without gradients it goes on"


@each_family
def test_gradients_flow_through_what_is_reused(family: Family) -> None:
    """Of the first step's residual, which serves all others: what the picture really changes by."""
    pipe = family.make()
    given = family.arguments()
    prompt = given.pop("prompt_embeds")
    direction = torch.randn(prompt.shape, generator=torch.Generator().manual_seed(5))

    def summed(share: Tensor) -> Tensor:
        generator = [torch.Generator().manual_seed(1)]
        words = {"prompt_embeds": prompt + share * direction, "generator": generator}
        return type(pipe).__call__.__wrapped__(pipe, **given | words)[0].square().mean()

    with accelerate(pipe, temporal=TaylorSeer(99, order=0, first=1, last=0)) as handle:
        share = torch.zeros((), requires_grad=True)
        (found,) = torch.autograd.grad(summed(share), share)
        assert served(handle.report) == STEPS - 1
        with torch.no_grad():
            above, below = (summed(torch.tensor(step)) for step in (1e-2, -1e-2))
    assert float(found) == pytest.approx(float(above - below) / 2e-2, rel=0.05)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@each_family
def test_gradients_where_everything_is_computed(family: Family, checkpointed: bool, differentiable: Any) -> None:
    pipe, expected = differentiable[family.name, checkpointed]
    with accelerate(pipe, temporal=NEVER):
        assert torch.equal(gradient(family, pipe), expected)
    with accelerate(pipe, spatial=PLAN) as handle:
        found = gradient(family, pipe)
        assert found.isfinite().all() and found.any() and not torch.equal(found, expected)
        assert handle.report.stages[0].kind == "coarse"
    if checkpointed:
        assert torch.equal(gradient(family, pipe), expected)


@each_family
def test_the_call_without_no_grad_is_accelerated(family: Family) -> None:
    pipe = family.make()
    with accelerate(pipe, **Setting(family, "taylorseer", True).options) as handle, torch.no_grad():
        fast = family.run(pipe)
        assert torch.equal(type(pipe).__call__.__wrapped__(pipe, **family.arguments())[0], fast)
        assert served(handle.report)


# ---- compilation


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


REFUSED = (RuntimeError, TypeError, ValueError)


@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
@each_family
def test_the_whole_model_compiled_is_refused(family: Family, in_place: bool, fresh_compiler: None) -> None:
    staged = in_place == (family.name in ("flux", "wan"))
    options: dict[str, Any] = {"spatial": PLAN} if staged else {"temporal": "taylorseer:3"}
    pipe = family.make()
    model = pipe.transformer
    named = bool(model._repeated_blocks)  # SD3's class names none
    way = r"use pipe.transformer.compile_repeated_blocks\(\) instead" if named else r"use block.compile\(\) for each"

    def compile_whole() -> None:
        if in_place:
            model.compile(backend="eager")
        else:
            pipe.transformer = torch.compile(model, backend="eager")

    def undo() -> None:
        model._compiled_call_impl, pipe.transformer = None, model

    compile_whole()
    with pytest.raises(REFUSED, match=way):
        accelerate(pipe, **options)
    undo()
    assert torch.equal(family.run(pipe), stock(family.name)), "nothing was changed"
    with accelerate(pipe, **options):
        fast = family.run(pipe)
        compile_whole()
        with pytest.raises(REFUSED, match=way):
            family.run(pipe)
        undo()
        assert torch.equal(family.run(pipe), fast)
        assert torch.equal(forward(family, model), stock_forward(family.name))
    assert torch.equal(family.run(pipe), stock(family.name))
