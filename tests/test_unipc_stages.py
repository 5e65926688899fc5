"""Wan on the scheduler that it was released with: policies on stock UniPC steps, stages stepped by UniPC."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from ralu_cache import RALU, Adaptive, Forecast, SeaCache, TaylorSeer, TeaCache, ToCa, accelerate
from tests.surroundings import FAMILIES, PLAN, STEPS, at, one_thread, recorded, stock  # noqa: F401

WAN = FAMILIES["wan"]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
WHOLE = RALU(steps=(STEPS,), ends=(1.0,), z=1.0)
POLICIES = {
    "teacache": TeaCache(0.4, "identity"),
    "seacache": SeaCache(0.8, order=1),
    "taylorseer": TaylorSeer(3),
    "toca": ToCa(3, 0.3, first=1),
    "adaptive": Adaptive(3, ratio=0.3),
}


def make(**options: Any) -> Any:
    pipe = WAN.make()
    pipe.scheduler = UniPCMultistepScheduler(**FLOW | options)
    return pipe


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return WAN.run(make(), guided=True)


def test_everything_computed_is_stock_and_so_is_off(plain: Tensor) -> None:
    pipe = make()
    for temporal in ("forecast:1", TeaCache(0.0, "identity"), TaylorSeer(1)):
        with accelerate(pipe, temporal=temporal) as handle:
            assert torch.equal(WAN.run(pipe, guided=True), plain)
            assert handle.report.scheduler == "UniPCMultistepScheduler" and handle.report.completed
    assert torch.equal(WAN.run(pipe, guided=True), plain)
    assert not pipe.transformer._forward_pre_hooks and type(pipe.scheduler) is UniPCMultistepScheduler


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("make_scheduler", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_policies_reuse_on_stock_steps(policy: Any, make_scheduler: Any, plain: Tensor) -> None:
    """Each sees the flow level of its step."""
    pipe = WAN.make()
    pipe.scheduler = make_scheduler(**FLOW)
    with accelerate(pipe, temporal=policy) as handle:
        found = WAN.run(pipe, guided=True)
    report = handle.report
    assert report.completed and found.isfinite().all() and len(report.steps) == STEPS
    assert any(step.reused + step.partial for step in report.steps)
    sigmas = [step.sigma for step in report.steps]
    expected = make_scheduler(**FLOW)
    expected.set_timesteps(STEPS)
    assert sigmas == pytest.approx(expected.sigmas[:-1].tolist(), abs=1e-6)


def test_guidance_is_left_out_on_unipc() -> None:
    pipe = make()
    with accelerate(pipe, guidance="early") as handle:
        assert WAN.run(pipe, guided=True).isfinite().all()
    assert 0 < handle.report.guided_steps < STEPS


def test_a_plan_of_one_fine_stage_is_unipc() -> None:
    """Along the same levels, whatever number of steps the caller asks for."""
    for order in (1, 2, 3):
        pipe = make(solver_order=order)
        with recorded(pipe.transformer) as calls, accelerate(pipe, spatial=WHOLE) as handle:
            found = WAN.run(pipe)
            times = [float(call["timestep"].flatten()[0]) for call in calls]
        assert handle.report.solver == {1: "multistep:1", 2: "multistep", 3: "multistep:3"}[order]
        sigmas = [step.sigma for step in handle.report.steps]
        assert times == [float(int(1000 * sigma)) for sigma in sigmas], "as stock rounds them"
        like = UniPCMultistepScheduler(**FLOW | {"solver_order": order})
        like.set_timesteps = lambda *_, **__: None  # the plan's own levels
        pipe.scheduler = like
        UniPCMultistepScheduler.set_timesteps(like, STEPS)
        like.sigmas = torch.tensor([min(sigmas[0], 1 - 1e-6), *sigmas[1:], 0.0])
        like.timesteps = torch.tensor(times, dtype=torch.int64)
        torch.testing.assert_close(found, WAN.run(pipe), rtol=2e-4, atol=2e-4)


def test_stages_run_with_everything_on_top(plain: Tensor) -> None:
    pipe = make()
    for temporal in (None, Forecast(2), POLICIES["seacache"], POLICIES["adaptive"]):
        with accelerate(pipe, spatial=PLAN, temporal=temporal) as handle:
            found = WAN.run(pipe, guided=True)
            again = WAN.run(pipe, guided=True)
        report = handle.report
        assert report.completed and found.isfinite().all() and torch.equal(found, again)
        assert [stage.kind for stage in report.stages] == ["coarse", "mixed", "fine"]
        assert report.solver == "multistep" and report.flop_ratio > 1
    assert torch.equal(WAN.run(pipe, guided=True), plain)


def test_batches_and_callbacks_on_stages() -> None:
    pipe, told = make(), list[int]()
    with accelerate(pipe, spatial=PLAN):
        both = WAN.run(pipe, (0, 1), guided=True)
        one = WAN.run(pipe, (1,), guided=True, callback_on_step_end=at(4, lambda pipe, tensors: told.append(1)))
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-4)
    assert told == [1]


def test_copies_are_accelerated_alike() -> None:
    pipe = make()
    with accelerate(pipe, spatial=PLAN):
        assert torch.equal(WAN.run(copy.deepcopy(pipe)), WAN.run(pipe))


@pytest.mark.parametrize(
    "option",
    [
        {"use_flow_sigmas": False}, {"prediction_type": "epsilon"}, {"solver_type": "bh1"}, {"predict_x0": False},
        {"thresholding": True}, {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}, {"solver_order": 4},
        {"disable_corrector": [0]},
    ],
)  # fmt: skip
def test_options_that_stages_cannot_have(option: dict[str, Any]) -> None:
    pipe = make(**option)
    with pytest.raises(ValueError, match=next(iter(option))):
        accelerate(pipe, spatial="ralu")
    assert type(pipe).__name__ == "WanPipeline" and not pipe.transformer._forward_pre_hooks


def test_what_decides_by_predictions_needs_euler() -> None:
    for options in ({"temporal": Forecast(tolerance=0.1)}, {"temporal": SeaCache(0.4, reuse="prediction")},
                    {"solver": "dpm"}, {"temporal": "forecast", "guidance": "early"}):  # fmt: skip
        with pytest.raises(TypeError, match=r"UniPCMultistepScheduler is not supported by this setting.*shift=3.0"):
            accelerate(make(), **options)


def test_a_scheduler_swapped_for_unipc_is_served() -> None:
    pipe = WAN.make()
    own = pipe.scheduler
    with accelerate(pipe, temporal=Forecast(3, ramp=False)) as handle:
        fast = WAN.run(pipe)
        pipe.scheduler = make().scheduler
        assert WAN.run(pipe).isfinite().all() and handle.report.scheduler == "UniPCMultistepScheduler"
        assert handle.report.called_steps == 3 and not any(step.tokens for step in handle.report.steps)
        pipe.scheduler = own
        assert torch.equal(WAN.run(pipe), fast)
    assert torch.equal(WAN.run(pipe), stock("wan"))
