"""What adapters read off stock models against PyTorch's counter and the published numbers; costs by rows."""

from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ralu_cache.adapters.counted import row_flops
from ralu_cache.adapters.flux import FluxAdapter
from ralu_cache.adapters.sd3 import SD3Adapter
from ralu_cache.report.flops import BlockCost, Part, StackCost, attention_flops
from tests.adapter_conformance import FAMILIES, Family
from tests.sparse_bench import Bench, drawn

COARSE, FULL, TEXT = 1024, 4096, 512  # tokens at 1024 x 1024 pixels
STACK = StackCost(
    Part(image=10, text=3, sample=7, among_text=2),
    (
        BlockCost(Part(image=5, text=4, joint=6), Part(image=8, text=9), Part(sample=11)),
        BlockCost(Part(image=5, among_image=6, cross=2), Part(image=8)),
    ),
)


def flux(heads: int, head: int, double: int, single: int, channels: int, context: int, pooled: int, guidance: bool):
    with torch.device("meta"):
        return FluxTransformer2DModel(
            in_channels=channels, out_channels=channels, num_layers=double, num_single_layers=single,
            attention_head_dim=head, num_attention_heads=heads, joint_attention_dim=context,
            pooled_projection_dim=pooled, guidance_embeds=guidance, axes_dims_rope=(head - 8, 4, 4),
        )  # fmt: skip


def counted(model: Any, image_tokens: int, text_tokens: int, batch: int = 1) -> int:
    """Operations of a stock FLUX transformer, as PyTorch counts them."""
    config = model.config
    with torch.device("meta"):
        inputs = {
            "hidden_states": torch.empty(batch, image_tokens, config.in_channels),
            "encoder_hidden_states": torch.empty(batch, text_tokens, config.joint_attention_dim),
            "pooled_projections": torch.empty(batch, config.pooled_projection_dim),
            "timestep": torch.empty(batch),
            "guidance": torch.empty(batch) if config.guidance_embeds else None,
            "img_ids": torch.empty(image_tokens, 3),
            "txt_ids": torch.empty(text_tokens, 3),
        }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def dev() -> Any:
    """FLUX.1-dev, without weights."""
    return flux(24, 128, 19, 38, 64, 4096, 768, guidance=True)


@pytest.fixture(scope="module")
def cost(dev: Any) -> StackCost:
    return FluxAdapter(dev).cost


@pytest.mark.parametrize(
    ("sizes", "image_tokens", "text_tokens"),
    [
        ((2, 16, 1, 1, 16, 24, 8, False), 16, 4),
        ((3, 16, 3, 0, 8, 20, 16, True), 37, 9),
        ((1, 64, 0, 2, 4, 64, 12, False), 64, 16),
        ((4, 24, 2, 6, 16, 96, 64, True), 100, 1),
    ],
)
def test_stock_flux_counts_exactly_the_same(sizes, image_tokens, text_tokens):
    model = flux(*sizes)
    expected = FluxAdapter(model).cost.forward(image_tokens, text_tokens)
    assert counted(model, image_tokens, text_tokens) == expected
    assert counted(model, image_tokens, text_tokens, batch=3) == 3 * expected


def test_flux_dev_counts_exactly_the_same(dev, cost):
    assert counted(dev, FULL, TEXT) == cost.forward(FULL, TEXT)


@pytest.mark.parametrize("dual", [0, 2])
def test_stock_sd3_counts_exactly_the_same(dual):
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=20, caption_projection_dim=32, pooled_projection_dim=24, out_channels=4,
            pos_embed_max_size=16, dual_attention_layers=tuple(range(dual)),
        )  # fmt: skip
        inputs = torch.empty(1, 4, 16, 12), torch.empty(1, 7, 20), torch.empty(1, 24), torch.empty(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    assert counter.get_total_flops() == SD3Adapter(model).cost.forward(8 * 6, 7)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("fresh", [1, 20, 96])
def test_a_sparse_call_counts_exactly_the_same(family: Family, fresh: int):
    with closing(Bench(family)) as bench:
        stale = bench.full(bench.call)[1]
        tokens = drawn(bench.layout.batch, bench.layout.tokens, fresh)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            bench.sparse(bench.call, tokens, stale)
        assert counter.get_total_flops() == bench.adapter.sparse_flops(bench.call, fresh)


@pytest.mark.parametrize("skipped", [[1], [1, 2]])
def test_layers_that_guidance_skips_are_not_counted_in_a_sparse_call(skipped: list[int]):
    with closing(Bench(FAMILIES[1])) as bench:
        call = {**bench.call, "skip_layers": skipped}
        stale = bench.full(call)[1]
        tokens = drawn(bench.layout.batch, bench.layout.tokens, 20)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            bench.sparse(call, tokens, stale)
        assert counter.get_total_flops() == bench.adapter.sparse_flops(call, 20)


def test_a_sparse_call_lies_between_nothing_and_all(cost):
    costs = [cost.forward(FULL, TEXT, fresh) for fresh in (0, 1, 1000, FULL)]
    assert cost.skipped(FULL, TEXT) < costs[0] and costs == sorted(set(costs))
    assert cost.forward(FULL, TEXT, round(0.3 * FULL)) / cost.forward(FULL, TEXT) == pytest.approx(
        (0.3 * FULL + TEXT) / (FULL + TEXT), abs=2e-3
    ), "blocks cost as much for each row that asks"


def test_flux_per_pass(cost):
    assert cost.forward(COARSE, TEXT) / 1e12 == pytest.approx(21.5, abs=0.1)
    assert cost.forward(FULL, TEXT) / 1e12 == pytest.approx(74.4, abs=0.1)
    assert 50 * cost.forward(FULL, TEXT) / 1e12 == pytest.approx(3719, rel=2e-3)


@pytest.mark.parametrize(
    ("steps", "ratio", "speedup", "last_share"), [((5, 6, 7), 0.3, 4.41, 0.62), ((2, 3, 5), 0.1, 7.54, 0.75)]
)
def test_ralu_against_fifty_full_steps(cost, steps, ratio, speedup, last_share):
    tokens = COARSE, round((1 - ratio) * COARSE + 4 * ratio * COARSE), FULL
    costs = [n * cost.forward(count, TEXT) for n, count in zip(steps, tokens, strict=True)]
    assert 50 * cost.forward(FULL, TEXT) / sum(costs) == pytest.approx(speedup, abs=0.01)
    assert costs[-1] / sum(costs) == pytest.approx(last_share, abs=0.01)


@pytest.mark.parametrize("index", [0, 18, 19, 56])
def test_a_block_costs_24_d2_a_token_and_exact_attention(cost, index):
    block, tokens, d = cost.blocks[index], FULL + TEXT, 3072
    modulation = 2 * d * (12 * d if index < 19 else 3 * d)
    found = block.attention + block.mlp + block.always
    assert found.flops(FULL, TEXT) == 24 * d**2 * tokens + 4 * tokens**2 * d + modulation


def test_all_tokens_fresh_is_the_whole_and_each_fresh_token_costs_the_same():
    assert STACK.forward(12, 5, 12) == STACK.forward(12, 5)
    costs = [STACK.forward(12, 5, fresh) for fresh in range(13)]
    assert len({after - before for before, after in pairwise(costs)}) == 1


def test_by_hand():
    outside = 10 * 12 + 3 * 5 + 7 + 4 * 5 * 5 * 2
    assert STACK.skipped(12, 5) == outside
    joint, own = 4 * 17 * 17 * 6, 4 * 12 * 12 * 6 + 4 * 12 * 5 * 2
    first = 13 * 12 + 13 * 5 + 11 + joint
    assert STACK.forward(12, 5) == outside + first + 13 * 12 + own
    assert STACK.without([1, 7]).forward(12, 5) == outside + first
    assert STACK.replay(12, 5) == outside + 11
    assert STACK.replay(12, 5, (2, 3), (1, 0)) == outside + 11 + 2 * 8 + 9 + 3 * 8
    assert STACK.without([0]).replay(12, 5, (2, 3), (1, 0)) == outside + 3 * 8
    assert attention_flops(3, 5, 7) == 420


def test_what_is_refused():
    for fresh in (-1, 13):
        with pytest.raises(ValueError, match=f"fresh tokens must lie within 0 to 12, got {fresh}"):
            STACK.forward(12, 5, fresh)
    with pytest.raises(ValueError, match="counts of 2 blocks are needed, got 1"):
        STACK.replay(12, 5, (1,))


def test_a_row_through_modules():
    attention = nn.ModuleDict({"to_q": nn.Linear(3, 4), "to_qkv": nn.Linear(3, 12), "norm": nn.LayerNorm(4)})
    assert row_flops(attention) == 2 * 3 * 4, "fused copies are not counted"
    assert row_flops(nn.Conv2d(2, 5, kernel_size=2, stride=2), None) == 2 * 2 * 5 * 4
