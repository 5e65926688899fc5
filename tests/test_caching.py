"""Temporal policies on stock pipelines: what is counted is what was run, and reuse never changes what it must not."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ralu_cache import RALU, SeaCache, TaylorSeer, TeaCache, accelerate, register_temporal, temporal
from ralu_cache.engine.blocks import StackState
from ralu_cache.engine.branches import Branch
from ralu_cache.history.marks import Mark
from ralu_cache.report.steps import BranchRecord
from ralu_cache.temporal.base import Rules, RuleState
from ralu_cache.temporal.policy import Decision, Policy, Situation
from tests.pipelines import (
    TOKENS,
    call_arguments,
    embeddings,
    generators,
    make_controlnet,
    make_pipeline,
    nothing_under_way,
    random_image,
)

PLAN = RALU(steps=(4, 4, 4))
POLICIES = [
    TeaCache(threshold=0.4, coefficients="identity"),
    SeaCache(threshold=0.4),
    SeaCache(threshold=0.4, order=1),
    TaylorSeer(interval=2),
]
REUSING = [dataclasses.replace(policy, transition=kind) for policy in POLICIES for kind in ("reset", "inherit")]
CASES = [*((policy, PLAN) for policy in REUSING), *((policy, None) for policy in POLICIES)]  # alone none is inherited


def latents(pipe: Any, **overrides: Any) -> Tensor:
    return pipe(**call_arguments(**overrides)).images


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """The batch of every call in which the last block's attention really ran."""
    ran: list[int] = []
    attention = pipe.transformer.single_transformer_blocks[-1].attn
    handle = attention.register_forward_hook(lambda module, args, kwargs, out: ran.append(len(out)), with_kwargs=True)
    try:
        yield ran
    finally:
        handle.remove()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scripted(Rules):
    """Reuses where the script says so: one tuple of samples a step, the same for each branch."""

    script: tuple[tuple[bool, ...], ...] = ()

    def start(self, batch: int, device: torch.device | str) -> "ScriptedState":
        return ScriptedState(self, batch, device)


class ScriptedState(RuleState):
    def decide(
        self, situation: Situation, signal: Tensor | None, previous: Tensor | None, readable: Tensor
    ) -> Decision:
        assert isinstance(self.policy, Scripted)
        reuse = torch.tensor(self.policy.script[situation.step]) & readable
        return Decision(reuse, torch.full((len(reuse),), torch.nan), torch.nan)


@pytest.mark.parametrize(("policy", "spatial"), CASES, ids=repr)
def test_the_report_says_what_ran(pipe: Any, policy: Policy, spatial: RALU | None) -> None:
    handle = accelerate(pipe, spatial=spatial, temporal=policy)
    with counted(pipe) as ran:
        images = latents(pipe, num_inference_steps=12)
    assert images.isfinite().all()
    report = handle.report
    assert report is not None and report.completed
    reused, computed = (sum(getattr(stage, kind) for stage in report.stages) for kind in ("reused", "computed"))
    assert sum(ran) == computed and computed + reused == 12 * 2 * 2
    assert reused > 0
    assert report.flops < 12 * 4 * report.baseline_flops / report.baseline_steps / 4
    assert not any(report.steps[0].branches[0].reused) and not any(report.steps[-1].branches[0].reused)


@pytest.mark.parametrize("spatial", [None, PLAN, RALU(steps=(2, 2, 2), noise="paper")])
def test_what_is_too_old_at_once_is_never_reused(pipe: Any, spatial: RALU | None) -> None:
    """The run is the uncached one bit for bit; thresholds of 0 are in the conformance suite."""
    expected = latents(pipe)
    if spatial is not None:
        with accelerate(pipe, spatial=spatial):
            expected = latents(pipe)
    handle = accelerate(pipe, spatial=spatial, temporal=SeaCache(threshold=9.0, max_age=1))
    assert torch.equal(latents(pipe), expected)
    assert handle.report is not None and not any(stage.reused for stage in handle.report.stages)


@pytest.mark.parametrize(("policy", "spatial"), CASES, ids=repr)
def test_a_sample_decides_for_itself(pipe: Any, policy: Policy, spatial: RALU | None) -> None:
    handle, scale = accelerate(pipe, spatial=spatial, temporal=policy), 2.5 if spatial is None else 1.0
    together = latents(pipe, batch=3, true_cfg_scale=scale)
    assert handle.report is not None
    mine = [[branch.reused[2] for branch in step.branches] for step in handle.report.steps]
    alone = {name: rows[2:] for name, rows in embeddings(3).items()}
    single = latents(pipe, batch=1, **alone, generator=generators(1, first=102), true_cfg_scale=scale)
    assert [[branch.reused[0] for branch in step.branches] for step in handle.report.steps] == mine
    torch.testing.assert_close(single[0], together[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_samples_of_one_call_may_differ(pipe: Any, spatial: RALU | None) -> None:
    """Two samples with opposite scripts equal the two runs in which both follow one script."""
    steps = 12 if spatial is not None else 8
    first = tuple(i % 3 == 1 for i in range(steps))
    second = tuple(i % 3 == 2 for i in range(steps))
    runs = {}
    for name, script in {
        "both": zip(first, second, strict=True),
        "first": zip(first, first, strict=True),
        "second": zip(second, second, strict=True),
    }.items():
        with accelerate(pipe, spatial=spatial, temporal=Scripted(script=tuple(script))), counted(pipe) as ran:
            runs[name] = latents(pipe)
        if name == "both":
            assert set(ran) == {1, 2}
    torch.testing.assert_close(runs["both"][0], runs["first"][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runs["both"][1], runs["second"][1], atol=1e-5, rtol=1e-5)


def test_a_reused_residual_is_the_one_of_the_step_before(pipe: Any) -> None:
    """With the same input twice, reusing equals computing."""
    seen: list[Tensor] = []
    script = (((False,) * 2, (True,) * 2) * 4)[:8]
    accelerate(pipe, temporal=Scripted(script=script))
    pipe.transformer.norm_out.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    residual: list[Tensor] = []
    pipe.transformer.x_embedder.register_forward_hook(lambda module, args, out: residual.append(out))
    latents(pipe, true_cfg_scale=1.0)
    for computed, reused in zip(range(0, 8, 2), range(1, 8, 2), strict=True):
        torch.testing.assert_close(seen[computed] - residual[computed], seen[reused] - residual[reused])


def test_guidance_branches_do_not_see_each_other(pipe: Any) -> None:
    """The guided branch decides and caches as it does when its partner sees other prompts."""
    handle = accelerate(pipe, temporal=Scripted(script=tuple((i % 3 != 0,) * 2 for i in range(8))))
    residuals: dict[str, list[Tensor]] = {}
    outputs: list[Tensor] = []
    pipe.transformer.register_forward_hook(lambda module, args, out: outputs.append(out[0]))
    frozen = embeddings(2)
    for name, scale in (("same", 1.0), ("other", -1.0)):
        outputs.clear()
        changed = {k: v * scale if k.startswith("negative") else v for k, v in frozen.items()}
        latents(pipe, **changed, callback_on_step_end=lambda pipe, i, t, given: {"latents": torch.ones(2, TOKENS, 16)})
        residuals[name] = outputs[2::2]
    assert all(torch.equal(a, b) for a, b in zip(residuals["same"], residuals["other"], strict=True))
    assert all(len(step.branches) == 2 for step in handle.report.steps)


@pytest.mark.parametrize("transition", ["reset", "inherit"])
def test_what_a_transition_leaves_behind(pipe: Any, transition: str) -> None:
    script = tuple((i % 4 == 0,) * 2 for i in range(12))
    handle = accelerate(pipe, spatial=PLAN, temporal=Scripted(script=script, transition=transition))
    latents(pipe)
    report = handle.report
    assert report is not None
    for first in (4, 8):
        branch = report.steps[first].branches[0]
        if transition == "reset":
            assert branch.reused == (False, False) and branch.inherited == 0
        else:
            assert branch.reused == (True, True)
            kept = {4: 2 * (TOKENS // 4 - round(0.3 * TOKENS / 4)), 8: 2 * 4 * round(0.3 * TOKENS / 4)}[first]
            assert branch.valid == kept and branch.inherited == 2 * report.steps[first].tokens - kept
        assert report.steps[first + 1].branches[0].valid == 2 * report.steps[first].tokens


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_flops_saved_are_those_of_the_same_plan_uncached(pipe: Any, spatial: RALU | None) -> None:
    steps = 12 if spatial is not None else 8
    script = tuple((i % 2 == 1, i % 3 == 1) for i in range(steps))
    plain = 0.0
    if spatial is not None:
        with accelerate(pipe, spatial=spatial) as uncached:
            latents(pipe)
            assert uncached.report is not None and uncached.report.temporal_saved_flops == 0
            plain = uncached.report.flops
    with accelerate(pipe, spatial=spatial, temporal=Scripted(script=script)) as handle:
        latents(pipe)
    report = handle.report
    assert report is not None and report.temporal_saved_flops > 0
    assert report.flops + report.temporal_saved_flops == (plain or report.baseline_flops)
    assert spatial is not None or report.spatial_saved_flops == 0
    for step in report.steps:
        assert sum(branch.flops for branch in step.branches) == step.flops
        assert (step.saved_flops > 0) == (step.reused > 0)


@pytest.mark.parametrize("transition", ["reset", "inherit"])
def test_marks_are_those_found_and_those_left(pipe: Any, transition: str) -> None:
    script = tuple((i % 4 == 0,) * 2 for i in range(12))
    handle = accelerate(pipe, spatial=PLAN, temporal=Scripted(script=script, transition=transition))
    latents(pipe)
    assert handle.report is not None
    steps = [(step.branches[0], 2 * step.tokens) for step in handle.report.steps]
    assert steps[0][0].found == (steps[0][1], 0, 0)
    for first in (4, 8):
        last, tokens = steps[first - 1]
        assert (last.empty, last.inherited, last.valid) == (0, 0, tokens), "as they were before the transition"
        branch, tokens = steps[first]
        if transition == "reset":
            assert branch.found == (tokens, 0, 0)
        else:
            assert branch.found == (branch.empty, branch.inherited, branch.valid) and branch.inherited > 0


@pytest.mark.parametrize("transition", ["reset", "inherit"])
def test_the_reported_marks_are_those_in_the_ledger(
    pipe: Any, transition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tuple((i % 3 == 0, i % 4 == 0) for i in range(12))
    seen = []
    report = Branch.report

    def compare(branch: Branch, *cost: float) -> Callable[[], BranchRecord]:
        record, held = report(branch, *cost), branch.cache.ledger.get("residual", branch.layout)
        assert held is not None
        seen.append((record().empty, record().inherited, record().valid))
        assert list(seen[-1]) == [int((held.mark == mark).sum()) for mark in Mark]
        return record

    monkeypatch.setattr(Branch, "report", compare)
    accelerate(pipe, spatial=PLAN, temporal=Scripted(script=script, transition=transition))
    latents(pipe)
    assert len(seen) == 2 * 12 and any(inherited for _, inherited, _ in seen) == (transition == "inherit")


def test_fresh_noise_leaves_nothing_valid(pipe: Any) -> None:
    script = tuple((i % 2 == 0,) * 2 for i in range(6))
    plan = RALU(steps=(2, 2, 2), noise="paper")
    handle = accelerate(pipe, spatial=plan, temporal=Scripted(script=script, transition="inherit"))
    latents(pipe)
    assert handle.report is not None
    assert handle.report.steps[2].branches[0].valid == 0 and handle.report.steps[2].branches[0].inherited > 0


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_controlnet_samples_are_not_added_twice(spatial: RALU | None) -> None:
    pipe = make_pipeline(diffusers.FluxControlNetPipeline, controlnet=make_controlnet())
    arguments = {k: v for k, v in call_arguments(1).items() if k not in ("true_cfg_scale",)}
    arguments |= {"control_image": random_image(), "num_inference_steps": 8}
    stack_outputs: list[Tensor] = []
    embedded: list[Tensor] = []
    pipe.transformer.norm_out.register_forward_hook(lambda module, args, out: stack_outputs.append(args[0]))
    pipe.transformer.x_embedder.register_forward_hook(lambda module, args, out: embedded.append(out))
    steps = 8 if spatial is None else 12
    script = tuple((i % 2 == 1,) for i in range(steps))
    accelerate(pipe, spatial=spatial, temporal=Scripted(script=script, compute_stage_end=False))
    pipe(**arguments)
    for step in range(1, steps, 2):
        if stack_outputs[step].shape == stack_outputs[step - 1].shape:
            before, after = (stack_outputs[i] - embedded[i] for i in (step - 1, step))
            torch.testing.assert_close(before, after)


def test_a_residual_of_another_shape_never_stands_in(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that could be broadcast either."""
    skip = StackState.skip
    accelerate(pipe, temporal=TaylorSeer(interval=2))
    for shorten in (lambda residual: residual[:, :1], lambda residual: residual[:1], lambda residual: residual[:, 1:]):
        monkeypatch.setattr(StackState, "skip", lambda stack, residual, cut=shorten: skip(stack, cut(residual)))
        with pytest.raises(RuntimeError, match="cannot stand in for"):
            latents(pipe)


def test_kontext_and_img2img_cache_too() -> None:
    kontext = make_pipeline(diffusers.FluxKontextPipeline)
    handle = accelerate(kontext, spatial=PLAN, temporal=TaylorSeer(interval=2, transition="inherit"))
    arguments = call_arguments(1, image=random_image(), _auto_resize=False, max_area=64 * 96)
    assert kontext(**arguments).images.isfinite().all()
    assert sum(stage.reused for stage in handle.report.stages) > 0
    pipe = make_pipeline(diffusers.FluxImg2ImgPipeline)
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 6)), temporal=TaylorSeer(interval=2))
    images = pipe(**call_arguments(1, image=random_image(), strength=0.6, num_inference_steps=12)).images
    assert images.isfinite().all() and sum(stage.reused for stage in handle.report.stages) > 0


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_off_after_caching_is_stock(pipe: Any, spatial: RALU | None) -> None:
    expected = latents(pipe)
    handle = accelerate(pipe, spatial=spatial, temporal="teacache:0.6")
    first = latents(pipe)
    assert torch.equal(latents(pipe), first)
    handle.disable()
    assert torch.equal(latents(pipe), expected)
    assert not pipe.transformer.transformer_blocks[0]._forward_pre_hooks


@pytest.mark.parametrize("spatial", [None, PLAN])
def test_a_failure_between_groups_leaves_nothing_behind(pipe: Any, spatial: RALU | None) -> None:
    steps = 12 if spatial is not None else 8
    script = tuple((i % 2 == 1, False) for i in range(steps))
    handle = accelerate(pipe, spatial=spatial, temporal=Scripted(script=script))
    expected = latents(pipe)
    for failing in (1, 5, 9):
        count = 0

        def fail(module: Any, args: Any, failing: int = failing) -> None:
            nonlocal count
            count += 1
            if count == failing:
                raise torch.OutOfMemoryError("in mid-step")

        broken = pipe.transformer.norm_out.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            latents(pipe)
        broken.remove()
        assert nothing_under_way(pipe)
        assert torch.equal(latents(pipe), expected)
    handle.disable()


def test_odd_sizes_cache_without_stages(pipe: Any) -> None:
    handle = accelerate(pipe, temporal=SeaCache(threshold=0.5))
    assert latents(pipe, width=100).isfinite().all()
    assert handle.report is not None and handle.report.size == (8, 25)
    handle = accelerate(pipe, temporal=TeaCache(threshold=0.5, coefficients="identity"))
    assert latents(pipe, width=100).isfinite().all()


def test_caching_alone_goes_with_inference_mode(pipe: Any) -> None:
    handle = accelerate(pipe, temporal=TaylorSeer(interval=2))
    expected = latents(pipe)
    with torch.inference_mode():
        assert torch.equal(latents(pipe), expected)
    assert handle.report is not None and handle.report.flop_ratio > 1


@pytest.mark.slow
def test_regional_compilation_keeps_working() -> None:
    """Of stages alone and with a policy."""
    pipe = make_pipeline()
    policy = TaylorSeer(interval=2)
    expected = []
    for reuse in (None, policy):
        accelerate(pipe, spatial=PLAN, temporal=reuse)
        expected.append(latents(pipe))
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager", dynamic=True)
    for reuse, picture in zip((None, policy), expected, strict=True):
        accelerate(pipe, spatial=PLAN, temporal=reuse)
        torch.testing.assert_close(latents(pipe), picture)


def test_blocks_are_found_again_after_an_interrupted_reuse(pipe: Any) -> None:
    """Hooks do not see a KeyboardInterrupt; meanwhile the model is whole, and whatever comes next finds its blocks."""
    stock, blocks = latents(pipe), pipe.transformer.transformer_blocks
    parameters = len(list(pipe.transformer.parameters()))
    handle = accelerate(pipe, temporal=TaylorSeer(interval=2))
    expected = latents(pipe)

    def interrupt(*_: Any) -> None:
        if not list(blocks):
            raise KeyboardInterrupt

    def interrupted() -> None:
        hook = pipe.transformer.norm_out.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            latents(pipe)
        hook.remove()
        assert list(blocks) and len(list(pipe.transformer.parameters())) == parameters

    interrupted()
    assert torch.equal(latents(pipe), expected)
    interrupted()
    handle.disable()
    assert torch.equal(latents(pipe), stock)


@pytest.mark.parametrize("cache", ["first block", "mag", "taylorseer"])
def test_stock_caches_are_reset_at_each_layout(pipe: Any, cache: str) -> None:
    config = {
        "first block": lambda: diffusers.FirstBlockCacheConfig(threshold=0.3),
        "mag": lambda: diffusers.MagCacheConfig(num_inference_steps=6, mag_ratios=torch.ones(6), retention_ratio=0.0),
        "taylorseer": lambda: diffusers.TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32
        ),
    }[cache]()
    plan = RALU(steps=(2, 2, 2))
    stock = make_pipeline()
    with accelerate(stock, spatial=plan):
        uncached = latents(stock, true_cfg_scale=1.0)
    accelerate(pipe, spatial=plan)
    resets: list[int] = []
    pipe.transformer.enable_cache(config)
    reset = pipe.transformer._reset_stateful_cache
    pipe.transformer._reset_stateful_cache = lambda *args: (resets.append(1), reset(*args))[1]
    images = latents(pipe, true_cfg_scale=1.0)
    assert images.isfinite().all() and images.shape == uncached.shape
    assert len(resets) == 1 + 2 + 1, "once at the start, at each transition, and by the pipeline itself at its end"


def test_others_may_register_a_policy(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_POLICIES", dict(temporal._POLICIES))
    register_temporal("every-second", lambda interval=2: TaylorSeer(interval=interval, order=0, first=1))
    handle = accelerate(pipe, temporal="every-second:3")
    latents(pipe)
    assert handle.report is not None
    assert [step.branches[0].reused[0] for step in handle.report.steps][:4] == [False, True, True, False]
    assert handle.report.temporal == "every-second:3"
