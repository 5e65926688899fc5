"""The analytic model against PyTorch's counter on stock models, and against the published numbers."""

import math
from contextlib import closing

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ralu_cache.report.flops import (
    TransformerShape,
    attention_flops,
    block_flops,
    embedding_flops,
    forward_flops,
    sparse_flops,
)
from tests.adapter_conformance import FAMILIES, Family
from tests.sparse_bench import Bench, drawn

FLUX = TransformerShape(
    width=3072, double_blocks=19, single_blocks=38, in_channels=64, out_channels=64, context_channels=4096,
    pooled_channels=768, guidance=True,
)  # fmt: skip
COARSE, FULL, TEXT = 1024, 4096, 512  # tokens at 1024 x 1024 pixels


def counted_flux(shape: TransformerShape, heads: int, image_tokens: int, text_tokens: int, batch: int = 1) -> int:
    """Operations of the stock FLUX transformer of that shape, as PyTorch counts them."""
    head = shape.width // heads
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            in_channels=shape.in_channels, out_channels=shape.out_channels, num_layers=shape.double_blocks,
            num_single_layers=shape.single_blocks, attention_head_dim=head, num_attention_heads=heads,
            joint_attention_dim=shape.context_channels, pooled_projection_dim=shape.pooled_channels,
            guidance_embeds=shape.guidance, axes_dims_rope=(head - 8, 4, 4),
        )  # fmt: skip
        inputs = {
            "hidden_states": torch.empty(batch, image_tokens, shape.in_channels),
            "encoder_hidden_states": torch.empty(batch, text_tokens, shape.context_channels),
            "pooled_projections": torch.empty(batch, shape.pooled_channels),
            "timestep": torch.empty(batch),
            "guidance": torch.empty(batch) if shape.guidance else None,
            "img_ids": torch.empty(image_tokens, 3),
            "txt_ids": torch.empty(text_tokens, 3),
        }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("shape", "heads", "image_tokens", "text_tokens"),
    [
        (TransformerShape(32, 1, 1, 16, 16, 24, pooled_channels=8), 2, 16, 4),
        (TransformerShape(48, 3, 0, 8, 12, 20, pooled_channels=16, guidance=True), 3, 37, 9),
        (TransformerShape(64, 0, 2, 4, 4, 64, pooled_channels=12), 1, 64, 16),
        (TransformerShape(96, 2, 6, 16, 16, 96, pooled_channels=64, guidance=True), 4, 100, 1),
    ],
)
def test_stock_flux_counts_exactly_the_same(shape, heads, image_tokens, text_tokens):
    expected = forward_flops(shape, image_tokens, text_tokens)
    assert counted_flux(shape, heads, image_tokens, text_tokens) == expected
    assert counted_flux(shape, heads, image_tokens, text_tokens, batch=3) == 3 * expected


def test_flux_dev_counts_exactly_the_same():
    assert counted_flux(FLUX, 24, FULL, TEXT) == forward_flops(FLUX, FULL, TEXT)


@pytest.mark.parametrize("dual", [0, 2])
def test_stock_sd3_counts_exactly_the_same(dual):
    shape = TransformerShape(
        width=32, double_blocks=3, single_blocks=0, in_channels=16, out_channels=16, context_channels=20,
        pooled_channels=24, drops_text=True, dual_attention_blocks=dual,
    )  # fmt: skip
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=20, caption_projection_dim=32, pooled_projection_dim=24, out_channels=4,
            pos_embed_max_size=16, dual_attention_layers=tuple(range(dual)),
        )  # fmt: skip
        inputs = torch.empty(1, 4, 16, 12), torch.empty(1, 7, 20), torch.empty(1, 24), torch.empty(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    assert counter.get_total_flops() == forward_flops(shape, 8 * 6, 7)


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


def test_a_sparse_call_lies_between_nothing_and_all():
    assert sparse_flops(FLUX, FULL, TEXT, FULL) == forward_flops(FLUX, FULL, TEXT)
    costs = [sparse_flops(FLUX, FULL, TEXT, fresh) for fresh in (0, 1, 1000, FULL)]
    assert embedding_flops(FLUX, FULL, TEXT) < costs[0] and costs == sorted(set(costs))
    assert sparse_flops(FLUX, FULL, TEXT, round(0.3 * FULL)) / forward_flops(FLUX, FULL, TEXT) == pytest.approx(
        (0.3 * FULL + TEXT) / (FULL + TEXT), abs=2e-3
    ), "blocks cost as much for each row that asks"


def test_flux_per_pass():
    assert forward_flops(FLUX, COARSE, TEXT) / 1e12 == pytest.approx(21.5, abs=0.1)
    assert forward_flops(FLUX, FULL, TEXT) / 1e12 == pytest.approx(74.4, abs=0.1)
    assert 50 * forward_flops(FLUX, FULL, TEXT) / 1e12 == pytest.approx(3719, rel=2e-3)


@pytest.mark.parametrize(
    ("steps", "ratio", "speedup", "last_share"), [((5, 6, 7), 0.3, 4.41, 0.62), ((2, 3, 5), 0.1, 7.54, 0.75)]
)
def test_ralu_against_fifty_full_steps(steps, ratio, speedup, last_share):
    tokens = COARSE, round((1 - ratio) * COARSE + 4 * ratio * COARSE), FULL
    costs = [n * forward_flops(FLUX, count, TEXT) for n, count in zip(steps, tokens, strict=True)]
    assert 50 * forward_flops(FLUX, FULL, TEXT) / sum(costs) == pytest.approx(speedup, abs=0.01)
    assert costs[-1] / sum(costs) == pytest.approx(last_share, abs=0.01)


@pytest.mark.parametrize("index", [0, 18, 19, 56])
def test_a_block_costs_24_d2_a_token_and_exact_attention(index):
    tokens, d = FULL + TEXT, FLUX.width
    modulation = 2 * d * (12 * d if index < 19 else 3 * d)
    assert block_flops(FLUX, index, FULL, TEXT) == 24 * d**2 * tokens + 4 * tokens**2 * d + modulation


def test_parts_add_up():
    blocks = sum(block_flops(FLUX, k, COARSE, TEXT) for k in range(FLUX.blocks))
    assert blocks + embedding_flops(FLUX, COARSE, TEXT) == forward_flops(FLUX, COARSE, TEXT)
    assert attention_flops(3, 5, 7) == 420
    assert isinstance(forward_flops(FLUX, COARSE, TEXT), int)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width.*0"),
        ({"width": 3072.0}, "width.*3072.0"),
        ({"single_blocks": -1}, "single_blocks.*-1"),
        ({"mlp_ratio": math.nan}, "mlp_ratio.*nan"),
        ({"dual_attention_blocks": 20}, "20 exceeds double_blocks = 19"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    sizes = {"width": 64, "double_blocks": 19, "single_blocks": 2, "in_channels": 4, "out_channels": 4}
    with pytest.raises(ValueError, match=message):
        TransformerShape(**({"context_channels": 8} | sizes | changes))


def test_impossible_calls_are_refused():
    with pytest.raises(ValueError, match="-1 image"):
        forward_flops(FLUX, -1, TEXT)
    for fresh in (-1, FULL + 1):
        with pytest.raises(ValueError, match=rf"within 0 to {FULL}, got {fresh}"):
            sparse_flops(FLUX, FULL, TEXT, fresh)
    with pytest.raises(ValueError, match=r"0 to 56, got 57"):
        block_flops(FLUX, 57, COARSE, TEXT)
