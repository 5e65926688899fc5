"""What every adapter must do: one suite of checks that know no family.

A family joins by a `Family` in FAMILIES: how to make a tiny random pipeline, how to call it, how many tokens a picture
has. Each of CHECKS takes one and raises AssertionError; `tests/test_adapter_conformance.py` runs them all on all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.counted import Counted
from ralu_cache import RALU, Adaptive, SeaCache, TaylorSeer, TeaCache, ToCa, accelerate
from ralu_cache.adapters import Adapter, find_adapter
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.prefix_qwen21 import filled_up
from ralu_cache.adapters.protocols import Layers
from ralu_cache.adapters.sites import Role
from ralu_cache.plane.canvas import TokenLayout
from tests.pipelines import make_pipeline, make_sd3_pipeline, nothing_under_way, pictures
from tests.pipelines_cogview4 import cogview4_pictures, make_cogview4_pipeline
from tests.pipelines_flux2 import flux2_pictures, make_flux2_pipeline, packed
from tests.pipelines_flux_kin import (
    chroma_pictures,
    longcat_pictures,
    make_chroma_pipeline,
    make_longcat_pipeline,
)
from tests.pipelines_hunyuan import hunyuan_videos, make_hunyuan_pipeline
from tests.pipelines_ltx import ltx_videos, make_ltx_pipeline
from tests.pipelines_qwen import make_qwen_pipeline, qwen_pictures
from tests.pipelines_qwen21 import make_qwen21_pipeline, qwen21_pictures
from tests.pipelines_z_image import make_z_image_pipeline, z_image_pictures
from tests.test_caching import Scripted
from tests.wan_pipelines import make_unipc_pipeline, make_wan_pipeline, videos


@dataclass(frozen=True)
class Family:
    """One adapter's case.

    make: a new pipeline of stock classes with the same small random weights each time, its progress bar disabled.
    pictures: call arguments for the pictures of these numbers, `output_type="latent"`, 8 steps, one generator each,
        prompts as embeddings; what belongs to a picture does not depend on which others are asked for.
    tokens: fine tokens of such a picture; a multiple of 4.
    guided, unguided: further arguments that switch classifier-free guidance on and off.
    every: whether every policy meets every plan; else each of them meets some, and families of another turn others.
    regions: a scorer that looks at the model if the family has one, else any.
    staged: False where the adapter lacks tokens: what is checked on stages is then checked without.
    layered: False where the adapter lacks layers: what reuses some tokens or layers is refused there, and not checked.
    seen: tokens of the image -> those that the head is given.
    first_sees: so many more in the first call of each prompt, which computes the text for all.
    held: what a pipeline returns as latents -> the form in which it held them, where that is another.
    """

    name: str
    make: Callable[[], Any]
    pictures: Callable[..., dict[str, Any]]
    tokens: int
    guided: Mapping[str, Any]
    unguided: Mapping[str, Any]
    every: bool = False
    turn: int = 0
    staged: bool = True
    layered: bool = True
    regions: str = "text-attention"
    seen: Callable[[int], int] = int
    first_sees: int = 0
    held: Callable[[Tensor], Tensor] = torch.clone

    def __str__(self) -> str:
        return self.name

    def plan(self, plan: RALU | None) -> RALU | None:
        return plan if self.staged else None

    def able(self, policies: Sequence[Any]) -> list[Any]:
        """Those of the policies that the family can serve."""
        return [policy for policy in policies if self.layered or getattr(policy, "caches", "stack") == "stack"]

    def some(self, cases: Sequence[Any], start: int, step: int) -> Sequence[Any]:
        """All of the cases, or every so many of them."""
        return cases if self.every else cases[(start + self.turn) % step :: step]

    def run(self, pipe: Any, samples: Sequence[int] = (0, 1), guided: bool = True, **overrides: Any) -> Tensor:
        """The latents that the pipeline returns for these pictures."""
        arguments = self.pictures(samples, **(self.guided if guided else self.unguided))
        return self.held(pipe(**(arguments | overrides), return_dict=False)[0])


SMALL = partial(pictures, height=32, width=48)
FAMILIES = [
    Family(
        "flux", make_pipeline, SMALL, 96,
        guided={"true_cfg_scale": 2.5}, unguided={"true_cfg_scale": 1.0}, every=True,
    ),
    Family(
        "sd3", make_sd3_pipeline, SMALL, 96,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0},
    ),
    Family(
        "qwen-image", make_qwen_pipeline, partial(qwen_pictures, height=32, width=48), 96,
        guided={"true_cfg_scale": 2.5}, unguided={"true_cfg_scale": 1.0}, turn=1,
    ),
    Family(
        "wan", make_wan_pipeline, videos, 120,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, turn=2, regions="canny",
    ),
]  # fmt: skip
LATER = [
    Family(
        "z-image", make_z_image_pipeline, partial(z_image_pictures, height=32, width=48), 96,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 0.0}, regions="canny",
        seen=lambda tokens: -(-tokens // 32) * 32 + 32,
    ),
    Family(
        "flux2", make_flux2_pipeline, partial(flux2_pictures, height=32, width=48), 96,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, held=packed, turn=1,
    ),
    Family(
        "hunyuan", make_hunyuan_pipeline, hunyuan_videos, 120,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, turn=2,
    ),
    Family(
        "wan-unipc", make_unipc_pipeline, videos, 120,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, regions="canny", turn=1,
    ),
    Family(
        "ltx", make_ltx_pipeline, ltx_videos, 72,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, staged=False,
    ),
    Family(
        "chroma", make_chroma_pipeline, partial(chroma_pictures, height=32, width=48), 96,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, turn=1,
    ),
    Family(
        "cogview4", make_cogview4_pipeline, partial(cogview4_pictures, height=32, width=48), 96,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, regions="canny", layered=False, turn=2,
    ),
    Family(
        "qwen-image-2.1", make_qwen21_pipeline, qwen21_pictures, 96,
        guided={"true_cfg_scale": 2.5}, unguided={"true_cfg_scale": 1.0}, regions="canny", layered=False,
        seen=filled_up, first_sees=7,
    ),
    Family(
        "longcat", make_longcat_pipeline, partial(longcat_pictures, height=32, width=48), 96,
        guided={"guidance_scale": 2.5}, unguided={"guidance_scale": 1.0}, turn=2,
    ),
]  # fmt: skip

PLAN = RALU(steps=(2, 2, 2))
PLANS = [None, PLAN, RALU(steps=(2, 2, 2), noise="paper")]
NEVER = [
    TeaCache(threshold=0.0, transition="inherit"),
    SeaCache(threshold=0.0, transition="inherit"),
    TaylorSeer(interval=3, max_age=0, transition="inherit"),
    Adaptive(interval=99, ratio=1.0, transition="inherit"),
    Adaptive(interval=1, transition="reset"),
]
REUSING = [
    TeaCache(threshold=0.4, coefficients="identity", transition="inherit"),
    SeaCache(threshold=0.8, order=1),
    TaylorSeer(interval=2, transition="inherit"),
    Adaptive(interval=2, transition="inherit"),
]
SPARSE = [
    Adaptive(interval=3, ratio=0.3, transition=kind, score=score)
    for kind, score in (("reset", "change"), ("kept", "value"))
]
COUNTED = [(None, True, (0, 1)), (TaylorSeer(interval=2, first=1), False, (0,)), (SPARSE[1], True, (0, 1))]
PER_LAYER = [ToCa(3, 0.4, first=1), TaylorSeer(3, per_layer=True)]


@dataclass(frozen=True, eq=False)
class Shuffled(TokenLayout):
    """All cells refined, the tokens in the order (B, n) given."""

    order: Tensor

    @cached_property
    def fine_index(self) -> Tensor:
        return self.order

    @cached_property
    def shared(self) -> bool:
        return bool((self.order == self.order[:1]).all())


def takes_callbacks(pipe: Any) -> bool:
    """False where a pipeline's call knows none."""
    return "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters


def stock_call(family: Family, pipe: Any) -> dict[str, Any]:
    """The arguments of the denoiser's first call in a stock run."""
    calls: list[dict[str, Any]] = []
    names = [name for name in inspect.signature(type(pipe.transformer).forward).parameters if name != "self"]
    record = pipe.transformer.register_forward_pre_hook(
        lambda net, args, call: calls.append(dict(zip(names, args, strict=False)) | call), with_kwargs=True
    )
    family.run(pipe, num_inference_steps=2)
    record.remove()
    return calls[0]


@contextmanager
def watched(adapter: Adapter, pipe: Any) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of every call of the denoiser's head, and the samples of every run of its last block."""
    tokens: list[int] = []
    samples: list[int] = []
    parts = adapter.blocks(pipe.transformer)[-1].named_modules()
    inside = next(part for name, part in parts if isinstance(part, nn.Linear) and "to_q" in name)  # once a sample
    handles = [
        adapter.head(pipe.transformer).register_forward_pre_hook(lambda head, args: tokens.append(args[0].shape[1])),
        inside.register_forward_hook(lambda linear, args, out: samples.append(len(out))),
    ]
    yield tokens, samples
    for handle in handles:
        handle.remove()


def check_off_is_stock(family: Family) -> None:
    pipe = family.make()
    expected = family.run(pipe, guided=False)
    with accelerate(pipe):
        assert torch.equal(family.run(pipe, guided=False), expected), "installed with nothing to do"
    with accelerate(pipe, spatial="ralu" if family.staged else None, temporal="seacache"):
        assert not torch.equal(family.run(pipe, guided=False), expected)
    assert torch.equal(family.run(pipe, guided=False), expected)
    assert not pipe.transformer._forward_pre_hooks and "progress_bar" not in vars(pipe)


def check_a_permuted_ribbon_is_the_stock_forward(family: Family) -> None:
    pipe = family.make()
    adapter = find_adapter(pipe)
    call = adapter.opened(stock_call(family, pipe))
    grid = adapter.grid(call)
    latents = adapter.latents(call, grid)
    batch, tokens = len(latents), grid[0] * grid[1]
    assert tokens == family.tokens
    if not family.staged:
        return
    orders = torch.stack([torch.randperm(tokens, generator=torch.Generator().manual_seed(i)) for i in range(batch)])
    for order in (orders, orders[:1].expand(batch, -1)):
        refined = torch.ones(batch, grid[0] // 2, grid[1] // 2, dtype=torch.bool)
        layout = Shuffled(refined, adapter.patch, order, frames=adapter.frames(call))
        positions = layout.positions()
        short = adapter.shorten(call, layout, layout.reduce(latents), positions)
        with torch.no_grad():
            expected = adapter.opened_prediction(pipe.transformer(**adapter.closed(call))[0])
            active = LayoutCall(layout, positions, short, {}, grid)
            handles = adapter.install_positions(pipe.transformer, lambda active=active: active)
            given = adapter.opened_prediction(pipe.transformer(**adapter.closed(short))[0])
            found = adapter.lengthen(given, layout)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def check_flops_are_those_that_a_counter_counts(family: Family, cases: Sequence[Any] = COUNTED) -> None:
    cases = [case for case in cases if family.able(case[:1])]
    for temporal, guided, samples in cases if family.every else cases[-2:]:
        pipe = family.make()
        handle = accelerate(pipe, spatial=family.plan(RALU(steps=(3, 3, 3))), temporal=temporal)
        with Counted(pipe.transformer) as counted:
            family.run(pipe, samples, guided)
        totals = iter(counted.calls)
        assert [sum(next(totals) for _ in range(step.calls)) for step in handle.report.steps] == [
            step.flops for step in handle.report.steps
        ]
        served = sum(step.reused + step.partial for step in handle.report.steps)
        assert (served > 0) == (temporal is not None)


def check_layer_caches(family: Family) -> None:
    """Each attention runs in the computed calls alone; FLOPs are exact; a picture does not depend on its batch."""
    pipe = family.make()
    adapter = find_adapter(pipe)
    if not family.layered:
        with pytest.raises(ValueError, match=r"which lacks layers: .*; what works with it"):
            accelerate(pipe, temporal=PER_LAYER[0])
    if not isinstance(adapter, Layers):
        return
    attentions = (Role.ATTENTION, Role.CROSS_ATTENTION, Role.INNER_ATTENTION, Role.PARALLEL)
    *_, watch = (m for site, m in adapter.sites(pipe.transformer) if site.role in attentions)
    linear = next(module for module in watch.modules() if isinstance(module, nn.Linear))
    for policy, plan in zip(PER_LAYER, (RALU(steps=(3, 3, 3)), None), strict=True):
        with accelerate(pipe, spatial=family.plan(plan), temporal=policy) as handle:
            ran: list[int] = []
            counting = linear.register_forward_hook(lambda _, args, out, ran=ran: ran.append(len(out)))
            with Counted(pipe.transformer) as counted:
                together = family.run(pipe)
            counting.remove()
            report = handle.report
            assert counted.flops == report.flops
            assert sum(stage.reused + stage.partial for stage in report.stages) > 0
            assert sum(ran) == sum(stage.computed for stage in report.stages)
            torch.testing.assert_close(family.run(pipe, (1,))[0], together[1], atol=1e-5, rtol=1e-5)


def check_stages_run_on_the_planned_tokens(family: Family) -> None:
    mixed = round(0.3 * family.tokens / 4) * 3 + family.tokens // 4
    pipe = family.make()
    if not family.staged:
        with pytest.raises(ValueError, match=r"not supported for the family .*, which lacks tokens"):
            accelerate(pipe, spatial=PLAN)
        return
    for plan in PLANS[1:]:
        handle = accelerate(pipe, spatial=family.plan(plan))
        with watched(find_adapter(pipe), pipe) as (tokens, samples):
            assert family.run(pipe).isfinite().all()
        report = handle.report
        assert [stage.tokens for stage in report.stages] == [family.tokens // 4, mixed, family.tokens]
        seen = [family.seen(step.tokens) for step in report.steps for _ in range(step.calls)]
        assert tokens == [count + family.first_sees * (call < 2) for call, count in enumerate(seen)]
        assert report.completed and report.batch == 2
        assert sum(samples) == sum(step.samples for step in report.steps) == 6 * 2 * 2, "two guidance branches of two"
        assert [stage.kind for stage in report.stages] == ["coarse", "mixed", "fine"]


def check_threshold_zero_is_the_uncached_run(family: Family) -> None:
    pipe = family.make()
    for number, plan in enumerate(PLANS):
        with accelerate(pipe, spatial=family.plan(plan)):
            expected = family.run(pipe, guided=False)
        of_three = 2 if family.every else 1  # plans that each policy meets
        met = [policy for place, policy in enumerate(NEVER) if (place + number + family.turn) % 3 < of_three]
        for policy in family.able(met):
            with accelerate(pipe, spatial=family.plan(plan), temporal=policy) as handle:
                assert torch.equal(family.run(pipe, guided=False), expected), f"{policy} under {plan}"
            assert not any(stage.reused or stage.partial for stage in handle.report.stages)


def check_what_is_reused_is_what_was_not_run(family: Family) -> None:
    pipe = family.make()
    adapter = find_adapter(pipe)
    for number, plan in enumerate((None, RALU(steps=(4, 4, 4)))):
        for policy in family.able(family.some([*REUSING, *SPARSE], number, 2)):
            handle = accelerate(pipe, spatial=family.plan(plan), temporal=policy)
            with handle, watched(adapter, pipe) as (_, samples):
                assert family.run(pipe).isfinite().all()
            stages = handle.report.stages
            served = sum(stage.partial if policy in SPARSE else stage.reused for stage in stages)
            assert served > 0, f"{policy} under {plan}"
            assert sum(samples) == sum(stage.computed + stage.partial for stage in stages)
            assert handle.report.temporal_saved_flops > 0


def check_a_picture_does_not_depend_on_its_batch(family: Family) -> None:
    pipe = family.make()
    looking = RALU(steps=(2, 2, 2), regions=family.regions)
    reusing = ((PLAN, policy) for policy in family.able([*REUSING, *SPARSE]))
    cases = [(looking, None), *((plan, None) for plan in PLANS), *reusing]
    for plan, policy in family.some(cases, 0, 3):
        with accelerate(pipe, spatial=family.plan(plan), temporal=policy):
            together, alone = family.run(pipe, (0, 1, 2), False), family.run(pipe, (2,), False)
            torch.testing.assert_close(alone[0], together[2], atol=1e-5, rtol=1e-5)
            if plan is looking or policy in SPARSE:
                assert torch.equal(family.run(pipe, (2,), False), alone), "the seed decides the picture"


def check_pictures_of_one_call_may_differ_in_what_they_reuse(family: Family) -> None:
    """Two pictures with scripts of their own equal those of the runs in which both follow one script."""
    pipe = family.make()
    scripts = [tuple(step % 3 == kind for step in range(9)) for kind in (1, 2)]
    images, ran = [], []
    for pair in (scripts, scripts[:1] * 2, scripts[1:] * 2):
        policy = Scripted(script=tuple(zip(*pair, strict=True)), transition="inherit", compute_stage_end=False)
        accelerate(pipe, spatial=family.plan(RALU(steps=(3, 3, 3))), temporal=policy)
        with watched(find_adapter(pipe), pipe) as (_, samples):
            images.append(family.run(pipe, guided=False))
        ran.append(set(samples))
    assert ran == [{1, 2}, {2}, {2}]
    for sample in (0, 1):
        torch.testing.assert_close(images[0][sample], images[1 + sample][sample], atol=1e-5, rtol=1e-5)


def check_guidance(family: Family) -> None:
    """The negative prompt counts if and only if guidance is on."""
    pipe = family.make()
    given = family.pictures((0, 1))["negative_prompt_embeds"]
    other = {"negative_prompt_embeds": [-rows for rows in given] if isinstance(given, list) else -given}
    for policy in family.able([None, REUSING[2], SPARSE[1]]):
        with accelerate(pipe, spatial=family.plan(PLAN), temporal=policy):
            guided, unguided = (family.run(pipe, guided=kind) for kind in (True, False))
            assert not torch.allclose(guided, unguided, atol=1e-3)
            assert not torch.allclose(family.run(pipe, **other), guided, atol=1e-3)
            assert torch.equal(family.run(pipe, guided=False, **other), unguided)


def check_callbacks_see_the_whole_canvas_and_may_change_it(family: Family) -> None:
    pipe = family.make()
    if not takes_callbacks(pipe):
        return
    adapter = find_adapter(pipe)
    seen: list[Tensor] = []

    def look(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["latents"].clone())
        return given

    handle = accelerate(pipe, spatial=family.plan(PLAN), temporal=None if family.staged else REUSING[2])
    plain = family.run(pipe, guided=False, callback_on_step_end=look, num_inference_steps=20)
    assert len(seen) == 20 and {latents.shape for latents in seen} == {plain.shape} and torch.equal(seen[-1], plain)
    first = adapter.to_image(seen[0], handle.report.size)
    if family.staged:
        assert torch.equal(first[..., ::2, ::2], first[..., 1::2, 1::2]), "coarse tokens stay replicated"
    for step in (0, 9, 19):  # of those that were asked for
        changed = family.run(
            pipe,
            guided=False,
            num_inference_steps=20,
            callback_on_step_end=lambda pipe, i, t, given, step=step: {"latents": given["latents"] + 0.1 * (i == step)},
        )
        assert changed.isfinite().all() and not torch.allclose(changed, plain, atol=1e-3)
    torch.testing.assert_close(changed, plain + 0.1)


def check_a_failure_leaves_nothing_behind(family: Family) -> None:
    pipe = family.make()
    stock = family.run(pipe, guided=False)
    adapter = find_adapter(pipe)
    block, head = adapter.blocks(pipe.transformer)[-1], adapter.head(pipe.transformer)
    for policy in family.some(family.able([SPARSE[1], None, REUSING[2]]), 0, 3):
        handle = accelerate(pipe, spatial=family.plan(PLAN), temporal=policy)
        expected = family.run(pipe, guided=False)
        calls = sum(step.calls for step in handle.report.steps)
        for failing, place in ((1, block), (calls - 1, head)):  # a call that reuses goes through no block
            count = 0

            def fail(module: Any, args: Any, failing: int = failing) -> None:
                nonlocal count
                count += 1
                if count == failing:
                    raise torch.OutOfMemoryError("in mid-step")

            broken = place.register_forward_pre_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                family.run(pipe, guided=False)
            broken.remove()
            assert nothing_under_way(pipe) and not handle.report.completed
            assert torch.equal(family.run(pipe, guided=False), expected)
        if takes_callbacks(pipe):
            with pytest.raises(ZeroDivisionError):
                family.run(pipe, guided=False, callback_on_step_end=lambda *_: 1 / 0)
            assert torch.equal(family.run(pipe, guided=False), expected)
        handle.disable()
    assert torch.equal(family.run(pipe, guided=False), stock)


def check_an_interrupt_leaves_nothing_behind(family: Family) -> None:
    pipe = family.make()
    if not takes_callbacks(pipe):
        return
    handle = accelerate(pipe, spatial=family.plan(PLAN), temporal=REUSING[2])
    expected = family.run(pipe, guided=False)

    def stop(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return given

    family.run(pipe, guided=False, callback_on_step_end=stop)
    assert not handle.report.completed and 0 < len(handle.report.steps) < 6
    assert torch.equal(family.run(pipe, guided=False), expected)


def check_the_progress_bar_counts_the_real_steps(family: Family) -> None:
    pipe = family.make()
    bars: list[list[int]] = []

    class Bar:
        def __init__(self, total: int) -> None:
            bars.append([total, 0])

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def update(self, n: int = 1) -> None:
            bars[-1][1] += n

    pipe.progress_bar = lambda iterable=None, total=None: Bar(total)
    for asked in (3, 6, 8):
        with accelerate(pipe, spatial=family.plan(PLAN)):
            family.run(pipe, guided=False, num_inference_steps=asked)
        assert bars[-1] == [6 if family.staged else asked] * 2, f"num_inference_steps={asked}"


def check_a_pipeline_in_bfloat16(family: Family) -> None:
    pipe = family.make().to(torch.bfloat16)
    halved = {
        name: [part.bfloat16() for part in value] if isinstance(value, list) else value.bfloat16()
        for name, value in family.pictures((0, 1)).items()
        if name.endswith(("embeds", "mask")) and value is not None
    }
    stock = family.run(pipe, guided=False, **halved, num_inference_steps=1)
    for policy in family.able([REUSING[2], SPARSE[1]]):
        handle = accelerate(pipe, spatial=family.plan(PLAN), temporal=policy)
        images = family.run(pipe, guided=False, **halved)
        assert images.dtype == stock.dtype and images.isfinite().all()
        assert len(handle.report.steps) == (6 if family.staged else 8)


LONG = {
    check_a_failure_leaves_nothing_behind, check_a_picture_does_not_depend_on_its_batch, check_layer_caches,
    check_pictures_of_one_call_may_differ_in_what_they_reuse, check_threshold_zero_is_the_uncached_run,
    check_what_is_reused_is_what_was_not_run,
}  # fmt: skip
CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
