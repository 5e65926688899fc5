"""Costs by rows: what adds up, and what is refused."""

from itertools import pairwise

import pytest
from torch import nn

from ralu_cache.adapters.counted import row_flops
from ralu_cache.report.row_flops import BlockCost, Part, StackCost

STACK = StackCost(
    Part(image=10, text=3, sample=7, among_text=2),
    (
        BlockCost(Part(image=5, text=4, joint=6), Part(image=8, text=9), Part(sample=11)),
        BlockCost(Part(image=5, among_image=6, cross=2), Part(image=8)),
    ),
)


def test_all_tokens_fresh_is_the_whole_and_each_fresh_token_costs_the_same() -> None:
    assert STACK.forward(12, 5, 12) == STACK.forward(12, 5)
    costs = [STACK.forward(12, 5, fresh) for fresh in range(13)]
    assert len({after - before for before, after in pairwise(costs)}) == 1


def test_by_hand() -> None:
    outside = 10 * 12 + 3 * 5 + 7 + 4 * 5 * 5 * 2
    assert STACK.skipped(12, 5) == outside
    joint, own = 4 * 17 * 17 * 6, 4 * 12 * 12 * 6 + 4 * 12 * 5 * 2
    assert STACK.forward(12, 5) == outside + 13 * 12 + 13 * 5 + 11 + joint + 13 * 12 + own
    assert STACK.replay(12, 5) == outside + 11
    assert STACK.replay(12, 5, (2, 3), (1, 0)) == outside + 11 + 2 * 8 + 9 + 3 * 8


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="fresh tokens must lie within 0 to 12, got 13"):
        STACK.forward(12, 5, 13)
    with pytest.raises(ValueError, match="counts of 2 blocks are needed, got 1"):
        STACK.replay(12, 5, (1,))


def test_a_row_through_modules() -> None:
    attention = nn.ModuleDict({"to_q": nn.Linear(3, 4), "to_qkv": nn.Linear(3, 12), "norm": nn.LayerNorm(4)})
    assert row_flops(attention) == 2 * 3 * 4, "fused copies are not counted"
    assert row_flops(nn.Conv2d(2, 5, kernel_size=2, stride=2), None) == 2 * 2 * 5 * 4
