"""Weights that come and go: nothing of the model is touched before an offload hook has brought its weights.

On the CPU what is away is on `meta` or NaN, so that to touch it shows. The simulated device has both sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import accelerate as hf
import pytest
import torch
from torch import Tensor

from ralu_cache import RALU, SeaCache, TaylorSeer, accelerate
from tests import surroundings
from tests.pairwise import pairwise
from tests.simulated_device import DEVICE, OnDevice, Simulated
from tests.surroundings import (
    CLOSE,
    FAMILIES,
    OFFLOADS,
    OTHER_FEW,
    PLAN,
    STAGED,
    Copies,
    Family,
    Setting,
    check_accelerated,
    each_family,
    fast,
    offload_streams,
    served,
    spoilt_groups,
    stock,
)

one_thread = surroundings.one_thread

POLICIES = {
    "plane": {"temporal": SeaCache(threshold=0.8, signal="plane")},
    "per layer": {"temporal": TaylorSeer(interval=3, per_layer=True)},
    "sobel": {"spatial": RALU(split=(3, 3, 3), regions="sobel")},
    "pixel": {"spatial": RALU(split=(3, 3, 3), lift="pixel"), "temporal": "taylorseer:3"},
}
LOOKING = [
    (name, case, list(OFFLOADS)[(number + place + 1) % 3])  # each case meets each way of offload, and each family does
    for number, name in enumerate(("flux", "qwen", "wan"))
    for place, case in enumerate(POLICIES)
    if (name, case) != ("wan", "pixel")
]


@pytest.fixture(autouse=True)
def spoilt() -> Iterator[None]:
    with spoilt_groups():
        yield


def close(found: Tensor, expected: Tensor) -> None:
    """Weights from a file lie at other addresses, and sums of float32 come out in another order."""
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)


def test_what_is_away_cannot_be_used() -> None:
    """Or the tests below could not fail."""
    for kind, offload in OFFLOADS.items():
        family = FAMILIES["flux"]
        pipe = family.make()
        offload(pipe)
        close(family.run(pipe), stock("flux"))
        weight = pipe.transformer.norm_out.linear.weight
        assert weight.device.type == "meta" or weight.isnan().all(), kind


CELLS = [
    (setting, kind, order)
    for number, setting in enumerate(OTHER_FEW + STAGED[1::2])
    for place, (kind, order) in enumerate(itertools.product(OFFLOADS, ("first", "second")))
    if (number + place) % 6 == 0
]


@pytest.mark.parametrize(("setting", "kind", "order"), CELLS, ids=str)
def test_offload_in_either_order(setting: Setting, kind: str, order: str) -> None:
    """The same picture as without; then the stock one."""
    family = setting.family
    pipe = family.make()
    if order == "first":
        OFFLOADS[kind](pipe)
    handle = accelerate(pipe, **setting.options)
    if order == "second":
        OFFLOADS[kind](pipe)
    for _ in range(2):
        close(family.run(pipe), fast(setting))
        check_accelerated(setting, handle.report)
    handle.disable()
    close(family.run(pipe), stock(family.name))


@pytest.mark.parametrize(("name", "case", "kind"), LOOKING)
def test_what_looks_at_weights_before_the_model_runs(name: str, case: str, kind: str) -> None:
    """Signals of the first block, layers one by one, regions and lifts that go through the autoencoder."""
    family = FAMILIES[name]
    pipe = family.make()
    with accelerate(pipe, **POLICIES[case]) as handle:
        expected = family.run(pipe)
        assert served(handle.report) or "temporal" not in POLICIES[case]
        OFFLOADS[kind](pipe)
        close(family.run(pipe), expected)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize(("name", "case"), [("wan", "plane"), ("flux", "per layer")])
def test_groups_that_a_stream_brings_ahead_of_time(name: str, case: str, order: str) -> None:
    """The first forward tells what follows what; from then on a module has the next one's weights brought meanwhile.

    A signal that is taken beside the model is no part of that order, and what it holds is not brought a second time.
    The stream is simulated: what a device's own runtime does beyond that (its allocator, events) is untested.
    """
    family = FAMILIES[name]
    pipe = family.make()
    with accelerate(pipe, **POLICIES[case]):
        expected = family.run(pipe)
    pipe = family.make()
    if order == "first":
        offload_streams(pipe)
    handle = accelerate(pipe, **POLICIES[case])
    if order == "second":
        offload_streams(pipe)
    for _ in range(2):
        assert torch.equal(family.run(pipe), expected)
        assert served(handle.report)
    handle.disable()
    assert torch.equal(family.run(pipe), stock(name))


def test_what_a_stream_has_not_brought_cannot_be_used() -> None:
    """Or the test above could not fail."""
    pipe = FAMILIES["wan"].make()
    offload_streams(pipe)
    assert torch.equal(FAMILIES["wan"].run(pipe), stock("wan"))
    assert pipe.transformer.proj_out.weight.isnan().all()
    with mock.patch.object(Copies, "synchronize", lambda stream: None):
        assert FAMILIES["wan"].run(pipe).isnan().any()


@pairwise(name=FAMILIES, policy=["teacache", "toca"], kind=["submodules", "model"])
def test_offload_added_or_removed_while_accelerated(name: str, policy: str, kind: str) -> None:
    family = FAMILIES[name]
    setting = Setting(family, policy, False)
    pipe = family.make()
    handle, expected = accelerate(pipe, **setting.options), fast(setting)
    assert torch.equal(family.run(pipe), expected)
    remove = OFFLOADS[kind](pipe)
    handle.disable()
    assert torch.equal(family.run(pipe), stock(family.name)), "added while accelerated"
    handle = accelerate(pipe, **setting.options)
    assert torch.equal(family.run(pipe), expected)
    remove()
    assert torch.equal(family.run(pipe), expected)
    handle.disable()
    assert torch.equal(family.run(pipe), stock(family.name)), "removed while accelerated"
    keys = set(family.make().transformer.state_dict())
    assert set(pipe.transformer.state_dict()) == keys


@each_family
def test_the_pipelines_own_method(family: Family) -> None:
    """It goes through the pipeline's components and hooks; `accelerate` and it, in every order, twice."""
    setting = Setting(family, "toca", True)
    pipe = family.make()
    with accelerate(pipe, **setting.options) as handle:
        expected = fast(setting)
        for _ in range(2):
            pipe.enable_model_cpu_offload(device="cpu")
            assert torch.equal(family.run(pipe), expected)
        handle.disable()
        assert torch.equal(family.run(pipe), stock(family.name))
    with accelerate(pipe, **setting.options):
        assert torch.equal(family.run(pipe), expected)
        pipe.remove_all_hooks()
        assert torch.equal(family.run(pipe), expected)
    assert torch.equal(family.run(pipe), stock(family.name))


@each_family
def test_a_call_that_failed_under_offload(family: Family) -> None:
    pipe = family.make()
    OFFLOADS["submodules"](pipe)
    with accelerate(pipe, **Setting(family, "toca", True).options):
        expected = family.run(pipe)
        with pytest.raises(ZeroDivisionError):
            family.run(pipe, callback_on_step_end=lambda *_: 1 / 0)
        assert torch.equal(family.run(pipe), expected)
    assert torch.equal(family.run(pipe), stock(family.name))


# ---- a device

DEVICE_STEPS = 6  # thousands of operations, each taken apart
DEVICE_POLICIES = {
    "teacache": {"temporal": "teacache:99"},
    "plane": {"temporal": "seacache:99,signal=plane"},
    "toca": {"temporal": "toca:2,ratio=0.3,first=1"},
    "adaptive": {"temporal": "adaptive:2,ratio=0.3", "spatial": PLAN},
    "per layer": {"temporal": "taylorseer:2,per_layer=true"},
}


def on_device(pipe: Any, family: Family) -> Tensor:
    arguments = family.arguments(num_inference_steps=DEVICE_STEPS)
    given = {name: OnDevice(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    result = pipe(**given)[0]
    assert result.device == DEVICE
    return result.values


def send_away(pipe: Any) -> Any:
    """The hook that diffusers' model offload is made of; gives the denoiser's."""
    hf.cpu_offload_with_hook(pipe.vae, DEVICE)
    return hf.cpu_offload_with_hook(pipe.transformer, DEVICE)[1]


@pytest.mark.parametrize(
    ("name", "case", "order"),
    [
        ("flux", "teacache", "first"), ("flux", "toca", "second"), ("sd3", "plane", "second"),
        ("sd3", "adaptive", "first"), ("wan", "teacache", "second"), ("wan", "per layer", "first"),
    ],
)  # fmt: skip
def test_model_offload_on_a_device(name: str, case: str, order: str) -> None:
    """The weights are on the host until `forward` is called, and away again between two calls."""
    family = FAMILIES[name]
    with Simulated():
        pipe, found = family.make(), []
        hook = send_away(pipe) if order == "first" else None
        with accelerate(pipe, **DEVICE_POLICIES[case]) as handle:
            hook = hook or send_away(pipe)
            for _ in range(2):
                assert next(pipe.transformer.parameters()).device.type == "cpu"
                found.append(on_device(pipe, family))
                assert served(handle.report)
                hook.offload()
        pipe = family.make()
    with accelerate(pipe, **DEVICE_POLICIES[case]):
        expected = family.run(pipe, num_inference_steps=DEVICE_STEPS)
    for result in found:
        close(result, expected)
