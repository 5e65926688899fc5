"""What is done once instead of in every denoiser call, and what only when somebody asks for it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache import RALU, SeaCache, TaylorSeer, accelerate
from ralu_cache.adapters.flux import FluxAdapter
from ralu_cache.history.residuals import _weights, uniform_weights
from ralu_cache.report.report import Report
from ralu_cache.report.steps import StepRecord
from ralu_cache.temporal import seacache
from tests.pipelines import call_arguments, make_controlnet, make_pipeline, random_image
from tests.strategies import situations

PLAN = RALU(steps=(3, 3, 2))


@pytest.mark.parametrize("signal", ["canvas", "plane"])
def test_seacaches_gain_is_built_once_a_level_for_both_branches(signal: str) -> None:
    pipe = make_pipeline()
    watched = mock.patch.object(seacache, "plane_gain", wraps=seacache.plane_gain)
    with watched as built, accelerate(pipe, spatial=PLAN, temporal=SeaCache(0.3, signal=signal)) as handle:
        pipe(**call_arguments(true_cfg_scale=2.5))
    steps = handle.report.steps
    assert all(step.calls == 2 for step in steps)
    assert [call.args[2] for call in built.call_args_list] == [step.sigma for step in steps]


@pytest.mark.parametrize("spatial", [None, PLAN], ids=["alone", "stages"])
def test_flops_are_counted_once_a_kind_of_call(spatial: RALU | None) -> None:
    """Not in each: of a branch on one layout all calls in full cost alike, and so do all that reuse."""
    pipe = make_pipeline()
    counted: list[str] = []

    def watched(name: str) -> Any:
        count = getattr(FluxAdapter, name)

        def counts(adapter: FluxAdapter, call: Any) -> float:
            counted.append(name)
            return float(count(adapter, call))

        return mock.patch.object(FluxAdapter, name, counts)

    with (
        watched("flops"),
        watched("skipped_flops"),
        accelerate(pipe, spatial=spatial, temporal=TaylorSeer(2)) as handle,
    ):
        pipe(**call_arguments(true_cfg_scale=2.5, num_inference_steps=12))
    assert handle.report is not None
    stages, branches = len(handle.report.stages), 2
    baseline = branches  # what the plain run's calls cost, by those of the first step
    assert counted.count("flops") == baseline + branches * stages
    reusing = sum(any(step.reused for step in handle.report.steps if step.stage == stage) for stage in range(stages))
    assert counted.count("skipped_flops") == branches * reusing > 0


def test_a_policy_that_counts_decides_each_step_once_before_the_first() -> None:
    pipe, seen = make_pipeline(), []
    policy = TaylorSeer(3)

    def decide(policy: TaylorSeer, situation: Any, age: int, rule: Any = TaylorSeer.reuses) -> bool:
        seen.append(situation.step)
        return rule(policy, situation, age)

    with mock.patch.object(TaylorSeer, "reuses", decide), accelerate(pipe, temporal=policy) as handle:
        pipe(**call_arguments(true_cfg_scale=2.5, num_inference_steps=12))
    table = [step.reused > 0 for step in handle.report.steps]
    assert table == [c == "r" for c in "CCrCrrCrrCrC"]
    assert seen == sorted(set(seen)), "once for two samples in each of two branches; forced steps need no look"


def test_the_table_is_not_asked_for_samples_of_another_age() -> None:
    """One that was computed in between, for another reason, decides by its own age."""
    policy, plan = TaylorSeer(4, ramp=False, first=1), situations(12)
    policy.foresee(plan)
    assert [policy.allows(plan[step], step % 4 - 1) for step in range(1, 4)] == [True] * 3
    assert not policy.allows(plan[6], 3) and policy.allows(plan[6], 0)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4), st.floats(0.0, 1.0), st.integers(0, 2))
def test_the_hosts_weights_are_the_devices_bit_for_bit(levels: list[float], sigma: float, near: int) -> None:
    """Also where two levels are too close to be told apart."""
    levels = levels[:2] + [levels[0] + near * 1e-5] * (len(levels) > 2) + levels[3:]
    expected = _weights(torch.tensor(levels)[:, None], sigma)[:, 0].tolist()
    assert list(uniform_weights(tuple(levels), sigma)) == expected


def record(index: int) -> StepRecord:
    return StepRecord(index, 0, 1.0, 0.5, 24, 1, 1e9, 0.1)


def test_a_reports_steps_are_made_when_they_are_read() -> None:
    made: list[int] = []

    def note(index: int) -> StepRecord:
        made.append(index)
        return record(index)

    report = Report("FluxPipeline", "none", "taylorseer", steps=[record(0)])
    for index in (1, 2):
        report.note(lambda index=index: note(index))
    assert not made
    assert [step.index for step in report.steps] == [0, 1, 2] == [0, *made]
    report.note(lambda: note(3))
    assert report.steps is report.steps and len(report.steps) == 4 and made == [1, 2, 3]
    assert len(replace(report, steps=report.steps[:2]).steps) == 2 and len(report.steps) == 4
    assert Report("FluxPipeline", "none", "none").steps == []


def test_a_report_that_nobody_read_yet_is_copied_and_pickled_whole() -> None:
    pipe = make_pipeline()
    with accelerate(pipe, spatial=PLAN, temporal="taylorseer:2") as handle:
        pipe(**call_arguments())
    report = handle.report
    assert report is not None and "_notes" in vars(report) and len(vars(report)["_notes"]) == 8
    copies = [copy.deepcopy(report), pickle.loads(pickle.dumps(report))]
    assert len(vars(copies[0])["_notes"]) == 8, "a copy makes its own"
    expected = report.to_dict()
    assert len(expected["steps"]) == 8
    for other in copies:
        assert other.to_dict() == expected


@pytest.mark.parametrize("spatial", [None, PLAN], ids=["alone", "stages"])
def test_a_report_says_that_a_controlnet_ran_at_reused_steps(spatial: RALU | None) -> None:
    pipe = make_pipeline(diffusers.FluxControlNetPipeline, controlnet=make_controlnet())
    arguments = {name: value for name, value in call_arguments(1).items() if name != "true_cfg_scale"}
    arguments |= {"control_image": random_image(), "num_inference_steps": 8}
    for interval, told in ((1, False), (2, True)):
        with accelerate(pipe, spatial=spatial, temporal=TaylorSeer(interval)) as handle:
            pipe(**arguments)
        report = handle.report
        assert report is not None
        reused = sum(step.reused == step.samples for step in report.steps)
        notices = [notice for notice in report.notices if "ControlNet ran at" in notice]
        assert bool(reused) is told and len(notices) == told
        if told:
            assert f"ran at all {len(report.steps)} steps, though at {reused} of them" in notices[0]
            assert "before the transformer" in str(report)
