"""Row-sparse recompute on small stock transformers and pipelines: some tokens run through the blocks, all answer."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ralu_cache import RALU, Adaptive, accelerate
from ralu_cache.adapters import find_adapter
from ralu_cache.engine.branches import Branch
from ralu_cache.history.feature import Mark, StaleFeature
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import put, take
from ralu_cache.temporal.base import Rules
from ralu_cache.temporal.policy import Situation, TokenView
from tests.adapter_conformance import FAMILIES, PLAN, PLANS, Family, watched
from tests.pipelines import make_pipeline, nothing_under_way
from tests.sparse_bench import CASES, Bench, drawn

by_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
by_case = pytest.mark.parametrize("case", CASES, ids=str)
LONG = RALU(steps=(4, 4, 4))


# ---- one call of a stock transformer


@by_case
def test_with_all_tokens_the_blocks_are_stock_bit_for_bit(case: Family) -> None:
    """Also when they are listed one by one."""
    with closing(Bench(case)) as bench, torch.no_grad():
        expected = bench.net(**bench.call)[0]
        prediction, residual = bench.full(bench.call)
        assert torch.equal(prediction, expected)
        bench.full(bench.moved(0.5))
        everyone = torch.arange(bench.layout.tokens).expand(bench.layout.batch, -1)
        prediction, _ = bench.sparse(bench.call, everyone, residual)
        tokens = bench.layout.tokens
        assert torch.allclose(prediction[:, :tokens], expected[:, :tokens], atol=1e-5) == (bench.extra == 0)
        assert torch.equal(bench.at_rest(), expected)
        assert torch.equal(bench.net(**bench.call)[0], expected), "outside of the call it is stock in any case"


@by_case
def test_right_after_a_full_call_a_sparse_one_changes_nothing(case: Family) -> None:
    """In whatever order the tokens come; reference tokens, and what a ControlNet adds, included."""
    with closing(Bench(case)) as bench:
        expected, residual = bench.full(bench.call)
        before = bench.entries()
        for count in (1, 17, bench.layout.tokens):
            tokens = drawn(bench.layout.batch, bench.layout.tokens, count, seed=count)
            prediction, of_tokens = bench.sparse(bench.call, tokens, residual)
            torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(of_tokens, take(residual, tokens), atol=1e-5, rtol=1e-5)
        for name, entries in bench.entries().items():
            torch.testing.assert_close(entries, before[name], atol=1e-5, rtol=1e-5)


@by_case
def test_permuted_rows_give_permuted_results(case: Family) -> None:
    with closing(Bench(case)) as bench:
        stale = bench.full(bench.call)[1]
        held = bench.entries()
        tokens = drawn(bench.layout.batch, bench.layout.tokens, 20)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
        prediction, residual = bench.sparse(bench.moved(0.3), tokens, stale)
        bench.put_back(held)
        permuted, of_permuted = bench.sparse(bench.moved(0.3), tokens[:, order], stale)
        torch.testing.assert_close(permuted, prediction, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(of_permuted, residual[:, order], atol=1e-5, rtol=1e-5)


@by_case
def test_only_the_chosen_tokens_and_the_text_change(case: Family) -> None:
    with closing(Bench(case)) as bench:
        stale, before = bench.full(bench.call)[1], bench.entries()
        tokens = drawn(bench.layout.batch, bench.layout.tokens, 20)
        call = bench.moved(0.3)
        prediction, residual = bench.sparse(call, tokens, stale)
        assert residual.shape == (bench.layout.batch, 20, stale.shape[-1])
        for name, entries in bench.entries().items():
            offset = bench.memory._layers[name].offset
            image = slice(offset, offset + bench.layout.tokens)
            changed = (entries != before[name]).any(-1)
            expected = put(torch.zeros_like(changed[:, image]), tokens, torch.ones_like(tokens, dtype=torch.bool))
            assert torch.equal(changed[:, image], expected), name
            assert not changed[:, bench.text + bench.layout.tokens :].any(), "reference tokens stay as they were"
        bench.stack.skip(stale)
        served = bench.predict(bench.adapter.without_control(call))
        same = bench.by_token(prediction == served).all(-1)
        assert torch.equal(same, ~expected)


@by_case
def test_filling_up_an_uneven_batch_changes_nothing(case: Family) -> None:
    """Short samples repeat their first token; the others' tokens are as if alone with theirs."""
    with closing(Bench(case)) as bench:
        stale, held = bench.full(bench.call)[1], bench.entries()
        batch, counts = bench.layout.batch, tuple(5 + 7 * (i % 2) for i in range(bench.layout.batch))
        tokens = drawn(batch, bench.layout.tokens, 12)
        meant = torch.arange(12) < torch.tensor(counts)[:, None]
        filled = torch.where(meant, tokens, tokens[:, :1])
        call = bench.moved(0.3)
        together, _ = bench.sparse(call, filled, stale, counts)
        entries = bench.entries()
        for count in set(counts):
            bench.put_back(held)
            alone, _ = bench.sparse(call, tokens[:, :count], stale)
            of_count = torch.tensor(counts) == count
            torch.testing.assert_close(together[of_count], alone[of_count], atol=1e-5, rtol=1e-5)
            for name, mine in bench.entries().items():
                torch.testing.assert_close(entries[name][of_count], mine[of_count], atol=1e-5, rtol=1e-5)


# ---- whole runs


@dataclass(frozen=True, kw_only=True)
class Chosen(Rules):
    """Computes the run's first step, and after it so many tokens of each sample: `counts`, other ones at each step."""

    counts: tuple[int, ...]
    order: int = 1  # type: ignore[misc]
    compute_stage_end: bool = False
    last: int = 0

    @property
    def caches(self) -> str:
        return "rows"

    def admits(self, situation: Situation, total: Tensor) -> Tensor:
        return torch.ones_like(total, dtype=torch.bool)

    def select(self, situation: Situation, view: TokenView) -> Tensor:
        chosen = torch.zeros_like(view.valid)
        for sample, count in zip(chosen, self.counts * (len(chosen) // len(self.counts)), strict=True):
            generator = torch.Generator().manual_seed(100 * situation.step + count)
            sample[torch.randperm(len(sample), generator=generator)[:count]] = True
        return chosen


@by_family
@pytest.mark.parametrize("plan", PLANS, ids=["no plan", "rewind", "paper"])
def test_a_ratio_of_1_is_the_uncached_run_bit_for_bit(family: Family, plan: RALU | None) -> None:
    pipe, guided = family.make(), plan is PLAN
    with accelerate(pipe, spatial=plan):
        expected = family.run(pipe, guided=guided)
    with accelerate(pipe, spatial=plan, temporal=Adaptive(99, ratio=1.0)) as handle:
        assert torch.equal(family.run(pipe, guided=guided), expected)
    assert not any(stage.reused or stage.partial for stage in handle.report.stages)
    assert handle.report.temporal_saved_flops == 0


@by_family
def test_off_is_stock_bit_for_bit(family: Family) -> None:
    """Also after an exception, and under a second accelerate(), which replaces."""
    pipe = family.make()
    before, expected = processors(pipe), family.run(pipe, (0,), False)
    first = accelerate(pipe, spatial=PLAN, temporal=Adaptive(3, ratio=0.3))
    assert not any(mine is stock for mine, stock in zip(processors(pipe), before, strict=True))
    sparse = family.run(pipe, (0,), False)
    with pytest.raises(ZeroDivisionError):
        family.run(pipe, (0,), False, callback_on_step_end=lambda *_: 1 / 0)
    assert torch.equal(family.run(pipe, (0,), False), sparse)
    second = accelerate(pipe, temporal=Adaptive(3, ratio=0.3))
    assert not first.enabled and type(before[0]) in type(processors(pipe)[0]).accepted, "one wrapper, not two"
    assert all(mine.stock is stock for mine, stock in zip(processors(pipe), before, strict=True))
    assert not torch.equal(family.run(pipe, (0,), False), sparse)
    second.disable()
    assert all(mine is stock for mine, stock in zip(processors(pipe), before, strict=True))
    assert torch.equal(family.run(pipe, (0,), False), expected)


def attentions(pipe: Any) -> list[Any]:
    """The layers in which image tokens attend to each other."""
    adapter = find_adapter(pipe)
    found = (getattr(b, name, None) for b in adapter.blocks(pipe.transformer) for name in adapter.processor.names)
    return [layer for layer in found if layer is not None]


def processors(pipe: Any) -> list[Any]:
    return [layer.processor for layer in attentions(pipe)]


@by_family
@pytest.mark.parametrize("plan", [None, LONG], ids=["no plan", "plan"])
def test_a_picture_does_not_depend_on_its_batch(family: Family, plan: RALU | None) -> None:
    """Three samples with other numbers of tokens each: short ones are filled up."""
    pipe = family.make()
    with accelerate(pipe, spatial=plan, temporal=Chosen(counts=(3, 11, 0))) as handle:
        together = family.run(pipe, (0, 1, 2), guided=False, num_inference_steps=12)
        told = {count for step in handle.report.steps for branch in step.branches for count in branch.fresh}
        assert {3, 11} <= told
    for sample, count in enumerate((3, 11, 0)):
        with accelerate(pipe, spatial=plan, temporal=Chosen(counts=(count,))):
            alone = family.run(pipe, (sample,), guided=False, num_inference_steps=12)
        torch.testing.assert_close(alone[0], together[sample], atol=1e-5, rtol=1e-5)


@by_family
def test_guidance_branches_do_not_see_each_other(family: Family) -> None:
    """What is predicted for the prompt is the same whatever the negative prompt, on latents that stay the same."""
    pipe = family.make()
    accelerate(pipe, temporal=Adaptive(3, ratio=0.3))
    outputs: list[Tensor] = []
    pipe.transformer.register_forward_hook(lambda module, args, out: outputs.append(out[0]))
    given = {name: rows for name, rows in family.pictures((0, 1)).items() if name.startswith("negative")}
    found = []
    for scale in (1.0, -1.0):
        outputs.clear()
        same = {name: rows * scale for name, rows in given.items()}
        family.run(
            pipe, **same, callback_on_step_end=lambda pipe, i, t, given: {"latents": torch.ones_like(given["latents"])}
        )
        one_call = len(outputs[0]) == 4  # [negative, positive]; else first the positive, then the negative
        found.append([out[2:] for out in outputs] if one_call else outputs[::2])
    assert len(found[0]) == 8 and all(torch.equal(*pair) for pair in zip(*found, strict=True))


@by_family
def test_kept_tokens_wait_and_the_first_step_of_a_stage_computes_the_new_ones(family: Family) -> None:
    cells, refined = family.tokens // 4, round(0.3 * family.tokens / 4)
    new = {4: 4 * refined, 8: 4 * (cells - refined)}
    pipe = family.make()
    policy = Adaptive(2, transition="kept")
    with accelerate(pipe, spatial=LONG, temporal=policy) as handle:
        assert family.run(pipe).isfinite().all()
    for step, fresh in new.items():
        for branch in handle.report.steps[step].branches:
            assert set(branch.fresh) == {fresh} and not any(branch.reused), f"step {step}"
            assert branch.found[Mark.EMPTY] == branch.inherited == 0
            assert branch.found[Mark.INHERITED] == fresh * len(branch.fresh), "the new ones had their parents' values"
    with accelerate(pipe, spatial=replace(LONG, noise="paper"), temporal=policy) as handle:
        family.run(pipe)
    for step in new:
        assert not any(branch.partial or any(branch.reused) for branch in handle.report.steps[step].branches)


@by_case
def test_sparse_steps_count_what_runs_and_finish_the_picture(case: Family) -> None:
    """Kontext's reference tokens and ControlNet samples ride along; the report counts what the blocks were given."""
    pipe = case.make()
    for plan in (None, LONG):
        with (
            accelerate(pipe, spatial=plan, temporal=Adaptive(3, ratio=0.3)) as handle,
            watched(find_adapter(pipe), pipe) as (_, samples),
        ):
            assert case.run(pipe, guided=plan is not None, num_inference_steps=12).isfinite().all()
        stages = handle.report.stages
        assert sum(samples) == sum(stage.computed + stage.partial for stage in stages)
        assert sum(stage.partial for stage in stages) > 0 and not any(stage.reused for stage in stages)
        assert handle.report.temporal_saved_flops > 0
        fresh = {
            (step.tokens, count) for step in handle.report.steps for branch in step.branches for count in branch.fresh
        }
        assert {(tokens, count) for tokens, count in fresh if count} == {
            (stage.tokens, round(0.3 * stage.tokens)) for stage in stages
        }


@by_family
@pytest.mark.parametrize("plan", [None, LONG], ids=["no plan", "plan"])
def test_flops_spent_and_saved_are_those_of_the_same_plan_uncached(family: Family, plan: RALU | None) -> None:
    pipe = family.make()
    with accelerate(pipe, spatial=plan, temporal=Adaptive(1)) as uncached:
        family.run(pipe)
    with accelerate(pipe, spatial=plan, temporal=Chosen(counts=(3, 11))) as handle:
        family.run(pipe)
    report = handle.report
    assert report.flops + report.temporal_saved_flops == uncached.report.flops
    for before, step in zip([None, *report.steps], report.steps, strict=False):
        assert sum(branch.flops for branch in step.branches) == step.flops
        assert (step.saved_flops > 0) == (step.partial > 0)
        begins = before is None or before.stage != step.stage
        shares = (1, 0) if begins else (0, 14 / 2 / step.tokens)
        assert (step.computed / step.samples, step.recomputed_share) == pytest.approx(shares)


@by_family
def test_without_a_forecast_less_is_held(family: Family) -> None:
    pipe, held = family.make(), []
    for order in (0, 1):
        with accelerate(pipe, temporal=Adaptive(3, ratio=0.3, order=order)) as handle:
            assert family.run(pipe, guided=False).isfinite().all()
        held.append(handle.report.peak_cached_bytes)
    assert held[0] < 0.75 * held[1]


def test_a_new_token_is_not_forecast_from_its_parent() -> None:
    """(3) "kept" lets only those tokens use earlier values that were computed for them."""
    coarse, fine = TokenLayout.coarse(1, 1, 2, patch=2), TokenLayout.fine(1, 1, 2, patch=2)
    branch = Branch(Adaptive(2, first=1, last=0, compute_stage_end=False, transition="kept"), coarse)
    ones = torch.ones(1, 2, 3)
    plan(branch, Situation(0, 8, 0, 4, False, 0.8), ones)
    branch.transfer(fine, None)
    plan(branch, Situation(4, 8, 0, 4, False, 0.9, stage=1), 5 * torch.ones(1, 8, 3))
    (group,) = branch.plan(Situation(5, 8, 1, 4, False, 0.7, stage=1), lambda: ones, lambda: ones)
    assert group.residual is not None and torch.equal(group.residual, 5 * torch.ones(1, 8, 3))


def plan(branch: Branch, where: Situation, residual: Tensor) -> None:
    """One call of a branch whose blocks give `residual` (B, n, d)."""
    for group in branch.plan(where, lambda: residual, lambda: residual):
        if group.tokens is not None:
            branch.record(group, take(residual, group.tokens), where)
        elif group.residual is None:
            branch.record(group, residual, where)


def test_keys_and_values_are_forecast_only_for_tokens_that_were_computed_themselves() -> None:
    """A parent's entry, or one from before the token's noise was changed, is taken as it is."""
    layout, same = (TokenLayout.coarse(1, 1, 4, patch=2) for _ in range(2))
    branch = Branch(Adaptive(99, ratio=0.5, score="staleness", ramp=False, transition="inherit"), layout)
    zeros = torch.zeros(1, 4, 3)
    branch.cache.ledger.record("residual", zeros, layout, 0, 1.0, keep=2)
    branch.cache.ledger.record("residual", zeros, layout, 1, 0.8, keep=2)
    assert branch.cache.memory is not None
    branch.cache.memory.begin(3, *torch.zeros(2, 1, 4))  # whose newest entries are then in its second slot
    branch.transfer(same, torch.tensor([[True, False, True, False]]))
    (group,) = branch.plan(Situation(2, 8, 2, 8, False, 0.9), lambda: zeros, lambda: zeros)
    rows = branch.rows(group, same, 3)
    assert rows is not None
    assert rows.tokens is not None and rows.tokens.tolist() == [[0, 1]]
    torch.testing.assert_close(rows.weight[:, 2:], torch.tensor([[1.0, 0.5]]))  # 0.9 lies halfway between 0.8 and 1.0


# ---- what is refused


def tuned(stock: Any) -> Any:
    """A processor that somebody derived from the stock one."""
    return type("Tuned", (type(stock),), {})()


@by_family
def test_an_unknown_attention_processor_is_refused_by_its_name(family: Family) -> None:
    pipe = family.make()
    expected = family.run(pipe, (0,), False)
    layer = attentions(pipe)[-1]
    stock, mine = layer.processor, tuned(layer.processor)
    layer.set_processor(mine)
    before = processors(pipe)
    with pytest.raises(ValueError, match=rf"{type(mine).__name__} is not supported .* only {type(stock).__name__}"):
        accelerate(pipe, spatial="ralu", temporal=Adaptive(ratio=0.3))
    assert processors(pipe) == before and layer.processor is mine
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in pipe.transformer.modules())
    assert type(pipe.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler
    with accelerate(pipe, temporal="seacache"):
        family.run(pipe, (0,), False)
    layer.set_processor(stock)
    assert torch.equal(family.run(pipe, (0,), False), expected)


@by_family
def test_a_processor_that_replaces_ours_is_refused_before_the_run(family: Family) -> None:
    """load_ip_adapter() after accelerate(): it would attend to the fresh tokens alone."""
    pipe = family.make()
    handle = accelerate(pipe, temporal=Adaptive(3, ratio=0.3))
    layer = attentions(pipe)[0]
    mine, accepted = tuned(layer.processor.stock), type(layer.processor.stock).__name__
    layer.set_processor(mine)
    ran: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda *given: ran.append(given))
    with pytest.raises(ValueError, match=rf"{type(mine).__name__} is not supported .* only {accepted}"):
        family.run(pipe, (0,), False)
    hook.remove()
    assert nothing_under_way(pipe) and not ran and handle.report is None
    handle.disable()
    assert layer.processor is mine, "what others have set stays"


@by_family
def test_a_stock_processor_that_replaces_ours_is_taken_in_at_the_next_call(family: Family) -> None:
    """unload_ip_adapter() after accelerate(); it is what `disable()` gives back."""
    pipe = family.make()
    handle = accelerate(pipe, temporal=Adaptive(3, ratio=0.3))
    expected = family.run(pipe, (0,), False)
    ours = processors(pipe)
    before, layer = [mine.stock for mine in ours], attentions(pipe)[0]
    other = type(before[0])()
    layer.set_processor(other)
    assert torch.equal(family.run(pipe, (0,), False), expected)
    assert layer.processor.stock is other and processors(pipe)[1:] == ours[1:]
    handle.disable()
    assert all(mine is stock for mine, stock in zip(processors(pipe), [other, *before[1:]], strict=True))


def test_the_stock_attention_backend_is_kept() -> None:
    pipe = make_pipeline()
    with accelerate(pipe, temporal=Adaptive(3, ratio=0.3)):
        pipe.transformer.set_attention_backend("_native_math")
        assert {str(mine._attention_backend) for mine in processors(pipe)} != {"None"}
        FAMILIES[0].run(pipe)
    backends = [stock._attention_backend for stock in processors(pipe)]
    assert len(set(backends)) == 1 and backends[0] is not None


def test_no_memory_is_read_under_another_layout() -> None:
    """(1) Not even on a layout that refines the same cells."""
    layout = TokenLayout.coarse(1, 1, 2, patch=2)
    branch = Branch(Adaptive(ratio=0.5), layout)
    (group,) = branch.plan(Situation(0, 8, 0, 8, False, 1.0), lambda: torch.zeros(1), lambda: torch.zeros(1))
    assert branch.rows(group, layout, 3) is not None
    with pytest.raises(StaleFeature, match="keys and values"):
        branch.rows(group, TokenLayout(layout.refined.clone(), layout.patch), 3)


def test_compiled_blocks_are_refused() -> None:
    """What a sparse call runs differs from call to call: each would be compiled anew, until torch gives up."""
    pipe = make_pipeline()
    handle = accelerate(pipe, temporal=Adaptive(2, ratio=0.3))
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        FAMILIES[0].run(pipe)
    assert nothing_under_way(pipe)
    handle.disable()
