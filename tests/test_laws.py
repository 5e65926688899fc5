"""The nine laws of the ledger: where each is tested, and property tests of a branch for those that join its parts.

A branch is where policy and ledger meet, so what a policy says and what a ledger marks are tested there together;
what a whole pipeline makes of it is in test_caching.py and test_machine.py.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache import Adaptive, SeaCache, TaylorSeer, TeaCache
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.verdict import Group
from ralu_cache.history.feature import StaleFeature
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, map_tokens, put, take
from ralu_cache.temporal.base import Rules
from ralu_cache.temporal.policy import TRANSITIONS, Situation
from tests.strategies import chains, emptied_at, layouts, situations

LAWS = {
    "1 a feature is never used under another layout": [
        "test_ledger:test_no_feature_is_read_under_another_layout",
        "test_laws:test_law_1_a_branch_reads_nothing_of_another_layout",
        "test_row_sparse:test_no_memory_is_read_under_another_layout",
    ],
    "2 transfers compose and keep bits": [
        "test_ledger:test_refining_in_two_steps_is_refining_in_one",
        "test_ledger:test_transfer_by_kind",
        "test_ledger:test_refining_and_coarsening_gives_the_bits_back",
        "test_attention:test_a_transition_moves_keys_and_values",
    ],
    "3 inherited only where the policy says so, empty never": [
        "test_ledger:test_marks_decide_who_may_read",
        "test_laws:test_law_3_inherited_only_where_the_policy_says_so_and_empty_never",
        "test_temporal_adaptive:test_what_was_not_computed_for_the_token_is_computed_unless_inherited",
        "test_row_sparse:test_a_new_token_is_not_forecast_from_its_parent",
    ],
    "4 reuse impossible: the uncached run": [
        "test_caching:test_what_is_too_old_at_once_is_never_reused",
        "test_machine:TestMachine",
        "test_laws:test_law_4_a_policy_that_cannot_reuse_never_does",
        "test_row_sparse:test_a_ratio_of_1_is_the_uncached_run_bit_for_bit",
    ],
    "5 computed within max_age steps and at the edges of stages": [
        "test_temporal_base:test_every_sample_is_computed_within_max_age_steps",
        "test_temporal_base:test_first_and_last_steps_and_both_sides_of_a_transition_are_computed",
        "test_laws:test_law_5_every_token_is_computed_within_max_age_steps",
        "test_machine:TestMachine",
    ],
    "6 samples and guidance branches do not see each other": [
        "test_caching:test_a_sample_decides_for_itself",
        "test_caching:test_guidance_branches_do_not_see_each_other",
        "test_laws:test_law_6_a_sample_in_a_batch_is_the_sample_alone",
        "test_row_sparse:test_a_picture_does_not_depend_on_its_batch",
        "test_row_sparse:test_guidance_branches_do_not_see_each_other",
    ],
    "7 permuting tokens permutes the result": [
        "test_ledger:test_mirroring_the_plane_mirrors_the_transfer",
        "test_temporal_base:test_permuting_tokens_leaves_distances",
        "test_temporal_forecast:test_permuting_tokens_permutes_forecasts",
        "test_laws:test_law_7_mirroring_the_plane_mirrors_what_is_reused",
        "test_temporal_adaptive:test_permuting_tokens_permutes_the_choice",
        "test_row_sparse:test_permuted_rows_give_permuted_results",
    ],
    "8 a run that dies leaves nothing behind": [
        "test_machine:TestMachine",
        "test_caching:test_a_failure_between_groups_leaves_nothing_behind",
        "test_flux:test_a_failed_run_leaves_nothing_behind",
    ],
    "9 a broken distance means compute": [
        "test_temporal_base:test_a_broken_signal_means_compute_for_that_sample_and_heals",
        "test_laws:test_law_9_a_broken_value_anywhere_means_compute",
    ],
}
WIDTH = 3
EAGER: dict[str, Rules] = {  # reuse whenever they may; by name of the signal they look at
    "canvas": SeaCache(1e6, order=1, compute_stage_end=False, last=0, transition="inherit"),
    "plane": SeaCache(1e6, signal="plane", compute_stage_end=False, last=0, transition="inherit"),
    "modulated": TeaCache(1e6, "identity", compute_stage_end=False, last=0, transition="inherit"),
    "none": TaylorSeer(99, order=2, ramp=False, first=1, compute_stage_end=False, last=0, transition="inherit"),
}
ROWS = Adaptive(99, ratio=0.4, score="staleness", ramp=False)  # computes some tokens a step


@pytest.mark.parametrize(("law", "tests"), LAWS.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_law_is_tested_where_the_index_says(law: str, tests: list[str]) -> None:
    for place in tests:
        module, name = place.split(":")
        assert hasattr(import_module(f"tests.{module}"), name), f"law {law}: there is no {place}"


def situation(step: int, steps: int = 8, stage_step: int | None = None) -> Situation:
    stage_step = step if stage_step is None else stage_step
    return Situation(step, steps, stage_step, steps, False, 1 - step / steps, stage=int(stage_step < step))


def draw(layout: TokenLayout, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a branch sees at one step: modulated tokens, canvas, and the residual that its blocks would compute."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = layout.fine_grid
    sizes = [(layout.tokens, WIDTH), (2, rows * layout.patch, columns * layout.patch), (layout.tokens, WIDTH)]
    modulated, canvas, residual = (torch.randn(layout.batch, *size, generator=generator) for size in sizes)
    return modulated + 2, canvas + 2, residual


def samples_of(group: Group) -> Tensor | slice:
    return slice(None) if group.rows is None else group.rows


def passed_over(groups: list[Group], layout: TokenLayout) -> Tensor:
    """(B, n) bool: the tokens that were not computed."""
    found = torch.zeros(layout.batch, layout.tokens, dtype=torch.bool)
    for group in groups:
        if group.residual is not None:
            served = torch.ones(len(group.residual), layout.tokens, dtype=torch.bool)
            if group.tokens is not None:
                served = put(served, group.tokens, torch.zeros_like(group.tokens, dtype=torch.bool))
            found[samples_of(group)] = served
    return found


def residuals(groups: list[Group], computed: Tensor) -> Tensor:
    """(B, n, d): what the stack adds, computed or reused."""
    whole = computed.clone()
    for group in groups:
        if group.residual is not None:
            added = group.residual
            if group.tokens is not None:
                added = put(added, group.tokens, take(computed[samples_of(group)], group.tokens))
            whole[samples_of(group)] = added
    return whole


def call(branch: Branch, where: Situation, seen: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One call of a branch: which tokens were passed over (B, n), and what the stack added (B, n, d)."""
    modulated, canvas, residual = seen
    groups = branch.plan(where, lambda: modulated, lambda: canvas)
    for group in groups:
        computed = residual[samples_of(group)]
        if group.tokens is not None:
            branch.record(group, take(computed, group.tokens), where)
        elif group.residual is None:
            branch.record(group, computed, where)
    return passed_over(groups, branch.layout), residuals(groups, residual)


def step(branch: Branch, where: Situation, seen: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """As `call`, but which samples were passed over (B,)."""
    passed, added = call(branch, where, seen)
    return passed.all(1), added


@given(layouts(), st.sampled_from([*EAGER.values(), ROWS]))
def test_law_1_a_branch_reads_nothing_of_another_layout(layout: TokenLayout, policy: Rules) -> None:
    """(1) Not even on a layout that refines the same cells: it must be transferred, or forgotten."""
    branch, seen = Branch(policy, layout), draw(layout, 0)
    step(branch, situation(0), seen)
    branch.cache.layout = TokenLayout(layout.refined.clone(), layout.patch)
    with pytest.raises(StaleFeature):
        branch.plan(situation(1), lambda: seen[0], lambda: seen[1])


@given(chains(2), st.sampled_from(sorted(EAGER)), st.sampled_from(["reset", "inherit"]), st.integers(0, 10**6))
def test_law_3_inherited_only_where_the_policy_says_so_and_empty_never(
    chain: list[TokenLayout], name: str, transition: str, seed: int
) -> None:
    """(3) After a transition with some fresh noise, and with some tokens emptied, before and after it."""
    old, new = chain
    generator = torch.Generator().manual_seed(seed)
    branch = Branch(replace(EAGER[name], transition=transition), old)
    step(branch, situation(0), draw(old, seed))
    changed, late = (torch.rand(2, new.batch, new.tokens, generator=generator) < 0.1).unbind()
    early = torch.rand(old.batch, old.tokens, generator=generator) < 0.05
    if transition == "inherit":
        branch.cache.ledger.store("residual", emptied_at(branch.cache.ledger.get("residual", old), early))
    branch.transfer(new, changed)
    if transition == "inherit":
        branch.cache.ledger.store("residual", emptied_at(branch.cache.ledger.get("residual", new), late))
    found, added = step(branch, situation(1, stage_step=0), draw(new, seed))
    if transition == "reset":
        assert not found.any()
        return
    source = map_tokens(old, new).source
    empty = take(early, source) | late
    assert torch.equal(found, ~empty.any(1)), "what is inherited may serve, what is empty may not"
    source = source[..., None].expand(-1, -1, WIDTH)
    parents = draw(old, seed)[2].gather(1, source)
    assert torch.equal(added[found], parents[found])


@given(
    layouts(),
    st.sampled_from(
        [
            TeaCache(0.0, "identity"), TeaCache((0.0, 0.0), (0.0,)), SeaCache(0.0), TaylorSeer(1),
            Adaptive(1), Adaptive(99, ratio=1.0, score="staleness"),
            *(replace(policy, max_age=age) for policy in (*EAGER.values(), ROWS) for age in (0, 1)),
        ]
    ),
    st.integers(0, 10**6),
)  # fmt: skip
def test_law_4_a_policy_that_cannot_reuse_never_does(layout: TokenLayout, policy: Rules, seed: int) -> None:
    """(4) Even if nothing changes at all from step to step."""
    branch, seen = Branch(policy, layout), draw(layout, seed)
    for k in range(8):
        found, added = step(branch, situation(k), seen)
        assert not found.any() and torch.equal(added, seen[2])


@given(
    chains(3),
    st.builds(
        Adaptive, st.integers(1, 5), ratio=st.floats(0, 1), max_age=st.integers(1, 5), order=st.integers(0, 2),
        score=st.sampled_from(["staleness", "region", "random", "change"]), first=st.integers(1, 2),
        transition=st.sampled_from(TRANSITIONS), compute_stage_end=st.booleans(),
        last=st.integers(0, 1), ramp=st.booleans(),
    ),
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.integers(0, 10**6),
)  # fmt: skip
def test_law_5_every_token_is_computed_within_max_age_steps(
    chain: list[TokenLayout], policy: Adaptive, counts: list[int], seed: int
) -> None:
    """(5) Over transitions too; and at a stage's edges, all but what the policy permits explicitly."""
    branch, generator = Branch(policy, chain[0]), torch.Generator().manual_seed(seed)
    computed_at = torch.full((chain[0].batch, chain[0].tokens), -1)
    for where in situations(*counts):
        layout = chain[where.stage]
        new = torch.zeros(layout.batch, layout.tokens, dtype=torch.bool)
        if where.stage and where.stage_step == 0:
            moved = map_tokens(branch.layout, layout)
            changed = torch.rand(new.shape, generator=generator) < 0.2
            new, computed_at = (moved.kind != Kind.KEPT) | changed, take(computed_at, moved.source)
            branch.transfer(layout, changed)
        passed, _ = call(branch, where, draw(layout, seed + where.step))
        computed_at = torch.where(passed, computed_at, where.step)
        assert (where.step - computed_at < policy.max_age).all(), "each within max_age steps"
        edge = where.step < policy.first or where.step >= where.steps - policy.last
        if edge or (where.ends_stage and policy.compute_stage_end) or (new.any() and policy.restarts):
            assert not passed.any(), "all of them"
        if policy.transition == "kept":
            assert not (passed & new).any(), "what is new, or has new noise"


@given(chains(2), st.sampled_from(["rows", *sorted(EAGER)]), st.floats(0.05, 2.0), st.booleans(), st.integers(0, 10**6))
def test_law_6_a_sample_in_a_batch_is_the_sample_alone(
    chain: list[TokenLayout], name: str, threshold: float, trend: bool, seed: int
) -> None:
    """(6) Bit for bit, decisions and what is added, over a transition, whatever its neighbours do."""
    policy = ROWS if name == "rows" else EAGER[name]
    if trend and "trend" in policy.transitions:
        policy = replace(policy, transition="trend")
    policy = replace(policy, max_age=3) if name in ("none", "rows") else replace(policy, threshold=threshold, max_age=3)
    one = [TokenLayout(layout.refined[-1:], layout.patch) for layout in chain]
    together, alone = Branch(policy, chain[0]), Branch(policy, one[0])
    for k in range(6):
        layout = chain[k // 3]
        if k == 3:
            together.transfer(chain[1], None)
            alone.transfer(one[1], None)
        modulated, canvas, residual = draw(layout, seed + k)
        seen = modulated[-1:], canvas[-1:], residual[-1:]
        where = situation(k, stage_step=k % 3)
        for mine, ours in zip(
            step(alone, where, seen), step(together, where, (modulated, canvas, residual)), strict=True
        ):
            assert torch.equal(mine, ours[-1:]), f"step {k}"


@settings(max_examples=25)
@given(layouts(), st.integers(0, 10**6))
def test_law_7_mirroring_the_plane_mirrors_what_is_reused(layout: TokenLayout, seed: int) -> None:
    """(7) Geometry, not token order, decides; distances of images and tokens do not change but for rounding."""
    mirrored = TokenLayout(layout.refined.flip(2), layout.patch)
    unit, other = TokenLayout(layout.refined, 1), TokenLayout(mirrored.refined, 1)

    def mirror(tokens: Tensor) -> Tensor:
        return other.reduce(unit.expand(tokens).flip(3))

    for policy in (*EAGER.values(), replace(ROWS, ratio=0.0, transition="kept")):
        here, there = Branch(policy, layout), Branch(policy, mirrored)
        for k in range(4):
            modulated, canvas, residual = draw(layout, seed + k)
            found, added = step(here, situation(k), (modulated, canvas, residual))
            seen = mirror(modulated), canvas.flip(3), mirror(residual)
            found_there, added_there = step(there, situation(k), seen)
            assert torch.equal(found, found_there) and (found == (k > 0)).all()
            torch.testing.assert_close(mirror(added), added_there)


@given(
    layouts(), st.sampled_from(["canvas", "plane", "modulated"]),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.integers(0, 10**6),
)  # fmt: skip
def test_law_9_a_broken_value_anywhere_means_compute(layout: TokenLayout, name: str, bad: float, seed: int) -> None:
    """(9) At that step and, compared with it, at the next; its neighbours go on reusing."""
    branch, generator = Branch(EAGER[name], layout), torch.Generator().manual_seed(seed)
    sample = int(torch.randint(layout.batch, (), generator=generator))
    for k in range(5):
        modulated, canvas, residual = draw(layout, seed + k)
        if k == 2:
            signal = canvas if name == "canvas" else modulated
            signal[sample].view(-1)[torch.randint(signal[sample].numel(), (), generator=generator)] = bad
        found, added = step(branch, situation(k), (modulated, canvas, residual))
        expected = torch.full((layout.batch,), k > 0)
        if k in (2, 3):
            expected[sample] = False
        assert torch.equal(found, expected), f"step {k}"
        assert added.isfinite().all()
