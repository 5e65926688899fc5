"""A stateful machine: whatever happened to a pipeline before, its next call is that of a pipeline just made.

Its oracles are pipelines of the same weights and seeds on which nothing else ever ran. Laws of the ledger in
parentheses (see test_laws.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from ralu_cache import RALU, Acceleration, Adaptive, Report, SeaCache, TaylorSeer, TeaCache, accelerate
from ralu_cache.engine.run import Run
from ralu_cache.history.feature import Mark
from ralu_cache.history.ledger import Ledger
from ralu_cache.temporal.adaptive import SCORES
from ralu_cache.temporal.base import Rules
from ralu_cache.temporal.policy import TRANSITIONS
from tests.pairwise import pairwise
from tests.pipelines import call_arguments, embeddings, make_controlnet, make_pipeline, nothing_under_way, random_image
from tests.test_caching import Scripted


@dataclass(frozen=True)
class Call:
    """How the pipeline is called."""

    batch: int = 1
    size: tuple[int, int] = (32, 32)
    steps: int = 5
    guided: bool = True

    def arguments(self) -> dict[str, Any]:
        height, width = self.size
        return call_arguments(
            self.batch, height=height, width=width, num_inference_steps=self.steps,
            true_cfg_scale=2.5 if self.guided else 1.0,
        )  # fmt: skip


PLANS = (
    None,
    RALU(steps=(4,), ends=(1.0,)),
    RALU(steps=(2, 3), ends=(0.3, 1.0)),
    RALU(steps=(2, 2, 2)),
    RALU(steps=(2, 3, 1), noise="paper", start="subsampled"),
    RALU(split=(1, 2, 1), regions="text-attention"),
    RALU(steps=(1, 2, 1, 2), ends=(0.1, 0.2, 0.4, 1.0)),
)
SIZES = ((32, 32), (32, 48), (48, 32))
ODD = (32, 36)  # nine tokens wide: stages refuse it
COMMON = {
    "transition": st.sampled_from(["reset", "inherit"]),
    "max_age": st.sampled_from([None, None, 0, 1, 2, 3]),
    "compute_stage_end": st.sampled_from([True, True, False]),
    "last": st.integers(0, 1),
}
FORECAST = COMMON | {"transition": st.sampled_from(["reset", "trend", "inherit"])}
THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.3, 1e6]), st.floats(0.01, 2.0))
POLICIES = st.one_of(
    st.none(),
    st.builds(TeaCache, THRESHOLDS, st.sampled_from(["flux", "identity"]), **COMMON),
    st.builds(SeaCache, THRESHOLDS, order=st.integers(0, 1), signal=st.sampled_from(["canvas", "plane"]), **FORECAST),
    st.builds(TaylorSeer, st.integers(1, 4), st.integers(0, 2), first=st.integers(1, 3), **FORECAST),
    st.builds(
        Adaptive,
        st.integers(1, 4),
        ratio=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        order=st.integers(0, 1),
        score=st.sampled_from(SCORES),
        **COMMON | {"transition": st.sampled_from(TRANSITIONS)},
    ),
)


class Broken(RuntimeError):
    """What the tests raise in mid-run."""


@cache
def alone(spatial: RALU | None, temporal: Rules | None, call: Call) -> Tensor:
    """The oracle: the result of a pipeline that was just made, with these settings."""
    pipe = make_pipeline()
    accelerate(pipe, spatial=spatial, temporal=temporal)
    return pipe(**call.arguments()).images


@cache
def stock_keys() -> tuple[str, ...]:
    return tuple(make_pipeline().transformer.state_dict())


def foreign_call(transformer: Any, sigma: float = 0.123456, batch: int = 2) -> Tensor:
    """The transformer, called by hand as no pipeline would in the run under way."""
    given = embeddings(batch)
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(batch, 6, 6, "cpu", torch.float32)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.ones(batch, 36, 16), timestep=torch.full((batch,), sigma), guidance=torch.ones(batch),
            pooled_projections=given["pooled_prompt_embeds"], encoder_hidden_states=given["prompt_embeds"],
            txt_ids=torch.zeros(7, 3), img_ids=ids, return_dict=False,
        )[0]  # fmt: skip


@cache
def stock_foreign_call() -> Tensor:
    return foreign_call(make_pipeline().transformer)


def sibling_of(pipe: Any) -> Any:
    """Another pipeline of the same components, as from_pipe makes it."""
    other = diffusers.FluxPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    return other


def place(transformer: Any, where: str) -> nn.Module:
    first, last = transformer.transformer_blocks[0], transformer.single_transformer_blocks[-1]
    return {
        "first block": first, "first attention": first.attn, "last attention": last.attn, "last block": last,
        "head": transformer.norm_out, "output": transformer.proj_out, "positions": transformer.pos_embed,
    }[where]  # fmt: skip


PLACES = ["first block", "first attention", "last attention", "last block", "head", "output", "positions"]


@contextmanager
def breaking(module: nn.Module, nth: int, error: type[BaseException]) -> Iterator[None]:
    """The module's nth call from here on raises."""
    count = 0

    def fail(module: nn.Module, args: Any) -> None:
        nonlocal count
        count += 1
        if count == nth:
            raise error(f"call {nth} of {type(module).__name__}")

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def counting(transformer: Any) -> Iterator[list[list[int]]]:
    """The batches of the calls in which the first, and the last, block really ran."""
    ran: list[list[int]] = [[], []]
    handles = [
        place(transformer, where).register_forward_hook(
            lambda module, args, kwargs, out, seen=seen: seen.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        for where, seen in zip(("first attention", "last attention"), ran, strict=True)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def hooks_left(model: nn.Module) -> list[str]:
    """Modules with hooks, native or diffusers' own."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_pre_hooks
        or module._forward_hooks
        or module._forward_hooks_always_called
        or (hasattr(module, "_diffusers_hook") and module._diffusers_hook.hooks)
    ]


def computed_calls(report: Report) -> list[int]:
    """By the report: how many samples each run of the blocks was made for, in order; partial ones run by themselves."""
    made = []
    for step in report.steps:
        for branch in step.branches:
            made += [branch.reused.count(False) - branch.partial, branch.partial]
        made += [report.batch] * step.calls if not step.branches else []
    return [samples for samples in made if samples]


def check_law_5(report: Report, policy: Rules) -> None:
    """(5), as far as the report alone tells, for each sample of each branch: shares of tokens, not which."""
    steps = report.steps
    for b in range(len(steps[0].branches)):
        for sample in range(report.batch):
            records = [step.branches[b] for step in steps]
            computed = [
                record.fresh[sample] / step.tokens if record.fresh[sample] else float(not record.reused[sample])
                for record, step in zip(records, steps, strict=True)
            ]
            told = f"branch {b}, sample {sample}, computed {computed}, {policy}"
            for i, (step, before) in enumerate(zip(steps, [None, *steps], strict=False)):
                begins = before is None or before.stage != step.stage
                ends = i + 1 < len(steps) and steps[i + 1].stage != step.stage
                if i < policy.first or i >= len(steps) - policy.last:
                    assert computed[i] == 1, f"first and last steps are computed: {told}"
                if begins and (policy.restarts or before is None):
                    assert computed[i] == 1, f"the first step of a stage is computed: {told}"
                if ends and policy.compute_stage_end:
                    assert computed[i] == 1, f"the step before a transition is computed: {told}"
            if policy.max_age is not None:
                window = max(1, policy.max_age)
                for k in range(len(steps) - window + 1):
                    assert sum(computed[k : k + window]) > 1 - 1e-6, f"all are computed within max_age steps: {told}"


def never_reuses(policy: Rules) -> bool:
    if policy.max_age in (0, 1):
        return True
    if isinstance(policy, Adaptive):
        return policy.transition != "kept" and (policy.interval == 1 or policy.ratio == 1)
    return getattr(policy, "threshold", None) == 0 or getattr(policy, "interval", None) == 1


class Machine(RuleBasedStateMachine):
    """One pipeline, to which everything happens that may happen to it."""

    @initialize(spatial=st.sampled_from(PLANS), temporal=POLICIES, batch=st.integers(1, 3), guided=st.booleans())
    def begin(self, spatial: RALU | None, temporal: Rules | None, batch: int, guided: bool) -> None:
        self.pipe = make_pipeline()
        self.handle: Acceleration | None = None
        self.spatial: RALU | None = None
        self.temporal: Rules | None = None
        self.call = Call(batch, guided=guided)
        self.enable(spatial, temporal)

    # ---- settings

    @rule(spatial=st.sampled_from(PLANS), temporal=POLICIES)
    def enable(self, spatial: RALU | None, temporal: Rules | None) -> None:
        """Also when enabled already: replaces."""
        before, self.spatial, self.temporal = self.handle, spatial, temporal
        self.handle = accelerate(self.pipe, spatial=spatial, temporal=temporal)
        assert before is None or not before.enabled

    @precondition(lambda self: self.handle is not None)
    @rule()
    def disable(self) -> None:
        assert self.handle is not None
        self.handle.disable()
        self.handle = self.spatial = self.temporal = None
        assert hooks_left(self.pipe.transformer) == []
        assert type(self.pipe.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler
        assert torch.equal(foreign_call(self.pipe.transformer, sigma=0.123456), stock_foreign_call())

    @precondition(lambda self: self.handle is not None)
    @rule(temporal=POLICIES)
    def move_to_a_sibling(self, temporal: Rules | None) -> None:
        """Another pipeline of the same parts is accelerated beside the first; then the first is stock again."""
        before, first, kept = self.handle, self.pipe, self.temporal
        assert before is not None
        self.temporal = temporal
        self.pipe = sibling_of(first)
        self.handle = accelerate(self.pipe, spatial=self.spatial, temporal=temporal)
        assert before.enabled
        assert torch.equal(first(**self.call.arguments()).images, alone(self.spatial, kept, self.call))
        before.disable()
        assert torch.equal(first(**self.call.arguments()).images, alone(None, None, self.call))

    @rule(size=st.sampled_from(SIZES))
    def resize(self, size: tuple[int, int]) -> None:
        self.call = replace(self.call, size=size)

    @rule(batch=st.integers(1, 3))
    def rebatch(self, batch: int) -> None:
        self.call = replace(self.call, batch=batch)

    @rule(steps=st.integers(4, 6))
    def change_steps(self, steps: int) -> None:
        self.call = replace(self.call, steps=steps)

    @rule(guided=st.booleans())
    def guide(self, guided: bool) -> None:
        self.call = replace(self.call, guided=guided)

    # ---- calls

    @rule()
    def run(self) -> None:
        with counting(self.pipe.transformer) as ran:
            result = self.pipe(**self.call.arguments()).images
        self.check(result, ran)

    @precondition(lambda self: self.handle is not None)
    @rule()
    def run_by_a_sibling(self) -> None:
        """A pipeline made from it is stock."""
        result = sibling_of(self.pipe)(**self.call.arguments()).images
        assert torch.equal(result, alone(None, None, self.call))

    @rule(where=st.sampled_from(PLACES), nth=st.integers(1, 9))
    def fail(self, where: str, nth: int) -> None:
        with counting(self.pipe.transformer) as ran, breaking(place(self.pipe.transformer, where), nth, Broken):
            try:
                result = self.pipe(**self.call.arguments()).images
            except Broken:
                result = None
        self.after(result, ran)

    @rule(where=st.sampled_from(PLACES), nth=st.integers(1, 9))
    def interrupt_by_keyboard(self, where: str, nth: int) -> None:
        module = place(self.pipe.transformer, where)
        with counting(self.pipe.transformer) as ran, breaking(module, nth, KeyboardInterrupt):
            try:
                result = self.pipe(**self.call.arguments()).images
            except KeyboardInterrupt:
                result = None
        self.after(result, ran)

    @rule(step=st.integers(0, 4), error=st.sampled_from([Broken, KeyboardInterrupt]))
    def fail_in_a_callback(self, step: int, error: type[BaseException]) -> None:
        def callback(pipe: Any, i: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            if i == step:
                raise error("callback")
            return given

        with counting(self.pipe.transformer) as ran:
            try:
                result = self.pipe(**self.call.arguments(), callback_on_step_end=callback).images
            except error:
                result = None
        self.after(result, ran)

    @rule(step=st.integers(0, 4))
    def fail_in_the_arithmetic(self, step: int) -> None:
        """Between two calls of the model, where a transition or the user's scorer may run out of memory."""
        name, count = "advance" if self.spatial is not None else "close_step", 0
        original = getattr(Run, name)

        def fail(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step + 1:
                raise Broken("step")
            return original(*args, **kwargs)

        with counting(self.pipe.transformer) as ran, mock.patch.object(Run, name, fail):
            try:
                result = self.pipe(**self.call.arguments()).images
            except Broken:
                result = None
        self.after(result, ran)

    @rule(step=st.integers(0, 4))
    def stop(self, step: int) -> None:
        def callback(pipe: Any, i: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = i >= step
            return given

        self.pipe(**self.call.arguments(), callback_on_step_end=callback)
        if self.handle is not None and (report := self.handle.report) is not None and report.steps:
            made = len(report.steps)
            if self.spatial is None:
                assert made == min(step + 1, self.call.steps)
            assert report.completed or report.steps[-1].sigma_next > 0

    @precondition(lambda self: self.spatial is not None)
    @rule()
    def ask_for_a_size_that_stages_refuse(self) -> None:
        with pytest.raises(ValueError, match=r"multiples of 8 .*, got 32x36"):
            self.pipe(**replace(self.call, size=ODD).arguments())

    @rule()
    def use_the_transformer_by_hand(self) -> None:
        assert torch.equal(foreign_call(self.pipe.transformer), stock_foreign_call()), "the model is not stock"

    # ---- oracles

    def after(self, result: Tensor | None, ran: list[list[int]]) -> None:
        """After a call that was to fail: if it did not come to that, the call is as good as any."""
        if result is not None:
            self.check(result, ran)
            return
        self.use_the_transformer_by_hand()

    def check(self, result: Tensor, ran: list[list[int]]) -> None:
        """Result, report and law 5 of a completed call."""
        told = f"spatial={self.spatial}, temporal={self.temporal}, {self.call}"
        assert torch.equal(result, alone(self.spatial, self.temporal, self.call)), f"not as if just made: {told}"
        if self.handle is None or (self.spatial is None and self.temporal is None):
            return
        report = self.handle.report
        assert report is not None and report.completed, told
        expected = computed_calls(report)
        assert ran == [expected, expected], f"the report says {expected}, the blocks ran for {ran}: {told}"
        stages = report.stages
        assert sum(stage.computed + stage.partial for stage in stages) == sum(expected), told
        made = sum(stage.computed + stage.partial + stage.reused for stage in stages)
        assert made == report.batch * sum(stage.calls for stage in stages), told
        if self.temporal is not None:
            check_law_5(report, self.temporal)
            if never_reuses(self.temporal):
                assert torch.equal(result, alone(self.spatial, None, self.call)), f"(4) {told}"
            if self.temporal.restarts:
                for branch in (branch for step in report.steps for branch in step.branches):
                    assert branch.inherited == branch.found[Mark.INHERITED] == 0, f"(3) what restarts forgets: {told}"

    @invariant()
    def nothing_is_left(self) -> None:
        """(8)"""
        if not hasattr(self, "pipe"):
            return
        assert tuple(self.pipe.transformer.state_dict()) == stock_keys()
        if self.handle is None:
            assert hooks_left(self.pipe.transformer) == []
            assert type(self.pipe) is diffusers.FluxPipeline
        else:
            assert nothing_under_way(self.pipe), "a call is held after its end"
        assert type(self.pipe.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler
        assert len(list(self.pipe.transformer.transformer_blocks)), "loops still find no blocks"

    def teardown(self) -> None:
        if hasattr(self, "pipe"):
            self.run()
            if self.handle is not None:
                self.disable()
                self.run()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=16, stateful_step_count=12, deadline=None, derandomize=True)
TestMachine.pytestmark = [pytest.mark.slow]


# ---- what the machine cannot reach, or found


def latents(pipe: Any, call: Call = Call(), **overrides: Any) -> Tensor:
    return pipe(**call.arguments() | overrides).images


def broken(*args: Any, **kwargs: Any) -> Any:
    raise Broken("in mid-run")


EVERY_SECOND = SeaCache(1e6, max_age=2, transition="inherit")
PLAN = RALU(steps=(2, 2, 2))


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_a_failure_in_what_follows_the_blocks_frees_the_run(spatial: RALU | None) -> None:
    """(8) Recording takes memory too."""
    pipe = make_pipeline()
    accelerate(pipe, spatial=spatial, temporal=EVERY_SECOND)
    with mock.patch.object(Ledger, "record", broken), pytest.raises(Broken):
        latents(pipe)
    assert nothing_under_way(pipe)
    assert torch.equal(latents(pipe), alone(spatial, EVERY_SECOND, Call()))


def test_a_failure_in_a_transition_frees_the_run() -> None:
    """(8)"""
    pipe = make_pipeline()
    accelerate(pipe, spatial=PLAN, temporal=EVERY_SECOND)
    with mock.patch("ralu_cache.engine.crossing.renoise_rewind", broken), pytest.raises(Broken):
        latents(pipe)
    assert nothing_under_way(pipe)
    assert torch.equal(latents(pipe), alone(PLAN, EVERY_SECOND, Call()))


def test_a_failure_on_the_way_into_the_schedule_frees_the_run() -> None:
    """(8)"""
    pipe = make_pipeline(diffusers.FluxImg2ImgPipeline)
    accelerate(pipe, spatial=PLAN)
    with mock.patch("ralu_cache.engine.run.Run.add_noise", broken), pytest.raises(Broken):
        latents(pipe, image=random_image(32, 32), strength=0.9)
    assert nothing_under_way(pipe)


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_a_stopped_run_is_not_taken_up_by_a_stock_pipeline_of_the_same_model(spatial: RALU | None) -> None:
    """(8) It shares the levels of the schedule, so only the end of the run tells them apart."""
    stock = make_pipeline()
    pipe = sibling_of(stock)
    accelerate(pipe, spatial=spatial, temporal=EVERY_SECOND)

    def stop(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return given

    latents(pipe, callback_on_step_end=stop)
    assert nothing_under_way(pipe)
    assert torch.equal(latents(stock), alone(None, None, Call()))


@pytest.mark.parametrize("spatial", [None, PLAN])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_run_that_the_keyboard_ended_is_not_taken_up(spatial: RALU | None, nth: int) -> None:
    """(8) Hooks do not see a KeyboardInterrupt; the model's next call finds that the last one never came back."""
    stock = make_pipeline()
    pipe = sibling_of(stock)
    accelerate(pipe, spatial=spatial, temporal=EVERY_SECOND)
    with breaking(pipe.transformer.norm_out, nth, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        latents(pipe)
    assert torch.equal(latents(stock), alone(None, None, Call()))
    assert nothing_under_way(pipe)
    assert torch.equal(latents(pipe), alone(spatial, EVERY_SECOND, Call()))


@pytest.mark.parametrize(
    ("nth", "error"), [*zip(range(1, 9), [Broken, Broken, KeyboardInterrupt, KeyboardInterrupt] * 2, strict=True)]
)
def test_a_failure_in_the_call_of_the_second_group(nth: int, error: type[BaseException]) -> None:
    """(8) Samples differ, so every second step calls the model within the model's hook."""
    call, pipe = Call(batch=2, guided=False), make_pipeline()
    policy = Scripted(script=((False, False), (True, False), (False, True)) * 2, compute_stage_end=False)
    handle = accelerate(pipe, spatial=PLAN, temporal=policy)
    expected = alone(PLAN, policy, call)
    with counting(pipe.transformer) as ran:
        assert torch.equal(latents(pipe, call), expected)
    assert handle.report is not None and ran[0] == computed_calls(handle.report)
    calls = sum(len(set(branch.reused)) for step in handle.report.steps for branch in step.branches)
    assert nth <= calls
    with breaking(pipe.transformer.norm_out, nth, error), pytest.raises(error):
        latents(pipe, call)
    assert torch.equal(foreign_call(pipe.transformer), stock_foreign_call())
    assert torch.equal(latents(pipe, call), expected)
    handle.disable()
    assert hooks_left(pipe.transformer) == []
    assert torch.equal(latents(pipe, call), alone(None, None, call))


def controlled() -> Any:
    return make_pipeline(diffusers.FluxControlNetPipeline, controlnet=make_controlnet())


def control_arguments() -> dict[str, Any]:
    given = {**Call().arguments(), "control_image": random_image(32, 32)}
    return {name: value for name, value in given.items() if name != "true_cfg_scale" and "negative" not in name}


@cache
def alone_controlled(spatial: RALU | None, temporal: Rules | None) -> Tensor:
    """As `alone`, with a ControlNet."""
    pipe = controlled()
    accelerate(pipe, spatial=spatial, temporal=temporal)
    return pipe(**control_arguments()).images


@pairwise(nth=[1, 2, 4], error=[Broken, KeyboardInterrupt], spatial=[None, PLAN])
def test_a_controlnet_that_fails_under_a_policy(nth: int, error: type[BaseException], spatial: RALU | None) -> None:
    """(8)"""
    pipe = controlled()
    handle = accelerate(pipe, spatial=spatial, temporal=EVERY_SECOND)
    for module in (pipe.controlnet.transformer_blocks[0], pipe.transformer.norm_out):
        with breaking(module, nth, error), pytest.raises(error):
            pipe(**control_arguments())
        assert nothing_under_way(pipe)
        assert torch.equal(foreign_call(pipe.transformer), stock_foreign_call())
        assert torch.equal(pipe(**control_arguments()).images, alone_controlled(spatial, EVERY_SECOND))
    handle.disable()
    assert hooks_left(pipe.transformer) == hooks_left(pipe.controlnet) == []
    assert torch.equal(pipe(**control_arguments()).images, alone_controlled(None, None))


def test_a_callback_that_fails_in_the_mixed_stage_leaves_the_transformer_to_others() -> None:
    pipe = make_pipeline()
    accelerate(pipe, spatial=PLAN, temporal=EVERY_SECOND)

    def fail(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        return broken() if step == 2 else given

    with pytest.raises(Broken):
        latents(pipe, callback_on_step_end=fail)
    assert torch.equal(foreign_call(pipe.transformer), stock_foreign_call())
    assert torch.equal(latents(pipe), alone(PLAN, EVERY_SECOND, Call()))


@pytest.mark.parametrize("policy", [SeaCache(1e6), EVERY_SECOND], ids=["reset", "inherit"])
def test_the_step_that_chooses_regions_by_attention_runs_its_blocks(policy: Rules) -> None:
    """Even where the policy would permit reuse: skipped blocks attend to nothing."""
    pipe = make_pipeline()
    policy = replace(policy, compute_stage_end=False)
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions="text-attention"), temporal=policy)
    assert latents(pipe).isfinite().all()
    assert handle.report is not None
    assert not any(handle.report.steps[1].branches[0].reused) and any(step.reused for step in handle.report.steps)


def test_a_stock_cache_under_a_policy_is_refused() -> None:
    """Both would wrap the blocks, and diffusers cannot take out the lower of two wrappers."""
    pipe = make_pipeline()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.3))
    with pytest.raises(ValueError, match=r"FirstBlockCacheConfig.*temporal=None.*disable_cache\(\)"):
        accelerate(pipe, temporal="seacache")
    pipe.transformer.disable_cache()
    with accelerate(pipe, temporal="seacache"):
        latents(pipe)
    assert torch.equal(latents(pipe), alone(None, None, Call()))
