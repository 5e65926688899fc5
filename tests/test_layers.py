"""Layer caching on small random transformers of each family: what runs, what is fetched, and what is left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.hooks import HookRegistry
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.bare import BareCall
from ralu_cache.adapters.flux import FluxAdapter
from ralu_cache.adapters.layers import received
from ralu_cache.adapters.qwen import QwenAdapter
from ralu_cache.adapters.sd3 import SD3Adapter
from ralu_cache.engine.blocks import BlockStack
from ralu_cache.engine.disguise import stock_of
from ralu_cache.engine.layers import LayerStack, Mode
from ralu_cache.history.feature import StaleFeature
from ralu_cache.history.layer_cache import Fresh, LayerCache
from ralu_cache.history.ledger import Ledger, Samples
from ralu_cache.history.residuals import extrapolate
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import map_tokens, take
from ralu_cache.temporal import TaylorSeer
from tests.pipelines import SIZES, make_sd3_transformer
from tests.pipelines_qwen import make_qwen_transformer
from tests.strategies import pairs

BATCH, ROWS, COLUMNS, TEXT = 3, 4, 6, 5
TOKENS = ROWS * COLUMNS


@dataclass(frozen=True, eq=False)
class Bench:
    """A transformer, its layers under control, a cache, and calls that depend on a level and on the sample alone."""

    model: Any
    adapter: Any
    stack: LayerStack
    cache: LayerCache
    bare: BareCall = field(default_factory=BareCall)

    @property
    def layers(self) -> int:
        return len(self.stack.singles)

    def call(self, sigma: float, samples: Tensor | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        flux, qwen = (isinstance(self.model, kind) for kind in (FluxTransformer2DModel, QwenImageTransformer2DModel))
        image = (TOKENS, 16) if flux or qwen else (4, 2 * ROWS, 2 * COLUMNS)
        call = {
            "hidden_states": torch.randn(BATCH, *image, generator=generator) * (1 + sigma),
            "encoder_hidden_states": torch.randn(BATCH, TEXT, 32, generator=generator),
            "pooled_projections": torch.randn(BATCH, 32, generator=generator),
            "timestep": torch.full((BATCH,), sigma if flux or qwen else sigma * 1000),
        }
        if samples is not None:
            call = {name: value[samples] for name, value in call.items()}
        if flux:
            places = torch.cartesian_prod(torch.arange(1), torch.arange(ROWS), torch.arange(COLUMNS)).float()
            call |= {"guidance": torch.ones(len(call["timestep"])), "img_ids": places, "txt_ids": torch.zeros(TEXT, 3)}
        if qwen:
            del call["pooled_projections"]
            call["img_shapes"] = [[(1, ROWS, COLUMNS)]]
        with torch.no_grad():
            return self.bare.predict(self.model, call | {"return_dict": False})

    def rows(self, output: Tensor) -> Tensor:
        """A prediction by token: (B, n, d)."""
        return output if output.ndim == 3 else self.layout.reduce(output)

    @property
    def layout(self) -> TokenLayout:
        return self.cache.layout

    def record(self, sigma: float, samples: Tensor | None = None, keep: int = 1) -> Tensor:
        return self.finish(self.stack.record(self.cache, TEXT, samples, keep), sigma, samples)

    def replay(self, sigma: float, samples: Tensor | None = None, **fresh: Fresh) -> Tensor:
        return self.finish(self.stack.replay(self.cache, TEXT, samples, **fresh), sigma, samples)

    def finish(self, mode: Mode, sigma: float, samples: Tensor | None = None) -> Tensor:
        """One call in a mode; then the layers are at rest again, whatever the stack of blocks is told."""
        self.bare.stack.mode = mode
        output = self.call(sigma, samples)
        self.bare.stack.mode = None
        return output


def make_bench(family: str, measures: tuple[str, ...] = (), chooses: bool = True) -> Bench:
    model: Any
    torch.manual_seed(0)
    if family == "flux":
        model = FluxTransformer2DModel(in_channels=16, **(SIZES | {"num_layers": 2, "num_single_layers": 2})).eval()
    else:
        model = make_sd3_transformer() if family == "sd3" else make_qwen_transformer()
    adapter = {"flux": FluxAdapter, "sd3": SD3Adapter, "qwen": QwenAdapter}[family](model)
    layout = TokenLayout.fine(BATCH, ROWS // 2, COLUMNS // 2, patch=2)
    return Bench(model, adapter, LayerStack(model, adapter, object(), measures, chooses), LayerCache(layout))


@pytest.fixture(params=["flux", "sd3", "qwen"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return make_bench(request.param)


def everything(batch: int = BATCH) -> dict[str, Fresh]:
    return {
        "image": Fresh(torch.arange(TOKENS).expand(batch, -1)),
        "context": Fresh(torch.arange(TEXT).expand(batch, -1)),
    }


class LinearRows(TorchFunctionMode):
    """Counts the rows that go through the linear layers of the blocks, by name within the block; modulation apart."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self._names: dict[int, str] = {}
        for block in bench.adapter.blocks(bench.model):
            by_name = block.named_parameters()
            self._names |= {id(weight): name for name, weight in by_name if "norm" not in name and "_mod." not in name}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch._C._nn.linear and (name := self._names.get(id(args[1]))):
            self.counts[name] = self.counts.get(name, 0) + args[0].shape[1]
        return function(*args, **(kwargs or {}))


def test_rest_and_record_are_stock_bit_for_bit_and_rest_holds_nothing(bench: Bench) -> None:
    resting = bench.call(0.8)
    recorded = bench.record(0.8)
    bench.stack.remove()
    stock = bench.call(0.8)
    assert torch.equal(resting, stock) and torch.equal(recorded, stock)
    assert bench.bare.stack.mode is None
    bench.bare.stack.mode = bench.stack.record(bench.cache, TEXT)
    bench.bare.stack.rest()
    assert bench.bare.stack.mode is None
    assert len(bench.cache) == 1
    bench.cache.clear()
    assert bench.cache.nbytes == 0 and len(bench.cache) == 0


def test_the_cache_has_the_size_of_two_outputs_a_token_and_layer() -> None:
    bench = make_bench("flux")
    bench.record(0.8)
    outputs = 4 * 2 * (TOKENS + TEXT) * 32 * 4  # 4 layers, attention and MLP, float32 of width 32
    assert bench.cache.nbytes == BATCH * outputs
    slim = make_bench("flux", chooses=False)
    slim.record(0.8)
    assert slim.cache.nbytes == BATCH * outputs * 3 // 4


def test_a_replay_at_the_same_input_gives_the_same_output_and_runs_nothing(bench: Bench) -> None:
    recorded = bench.record(0.8)
    with LinearRows(bench) as ran:
        replayed = bench.replay(0.8)
    assert torch.equal(replayed, recorded)
    assert not ran.counts


def test_a_replay_uses_the_current_time_embedding(bench: Bench) -> None:
    recorded = bench.record(0.8)
    assert not torch.allclose(bench.replay(0.3), recorded)


def test_a_replay_with_all_tokens_is_a_run_with_cached_attention(bench: Bench) -> None:
    bench.record(0.8)
    blocks = bench.adapter.blocks(bench.model)
    kept: dict[str, Any] = {}
    handles = []
    for layer, block in enumerate(blocks):
        for name in ("attn", "attn2"):
            if (module := getattr(block, name, None)) is not None:
                key = f"{layer}.{name}"
                handles.append(module.register_forward_hook(lambda m, a, out, key=key: kept.setdefault(key, out)))
    bench.call(0.8)  # keeps each attention's first output, and gives it again at 0.3
    expected = bench.call(0.3)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(bench.replay(0.3, **everything()), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, bench.call(0.3))


def test_the_fresh_tokens_change_and_no_others(bench: Bench) -> None:
    bench.record(0.8)
    whole = bench.replay(0.3, **everything())
    bench.record(0.8)
    stale = bench.replay(0.3)
    tokens = torch.stack([torch.randperm(TOKENS)[:7] for _ in range(BATCH)])
    some = bench.replay(0.3, image=Fresh(tokens))
    chosen = torch.zeros(BATCH, TOKENS, dtype=torch.bool).scatter(1, tokens, True)
    torch.testing.assert_close(bench.rows(some)[chosen], bench.rows(whole)[chosen], rtol=1e-4, atol=1e-5)
    assert torch.equal(bench.rows(some)[~chosen], bench.rows(stale)[~chosen])
    assert ((bench.rows(some) - bench.rows(stale)).abs().amax(-1) > 0)[chosen].all()
    assert torch.equal(bench.replay(0.3), some)  # what was fresh is cached


def test_only_the_chosen_rows_run_and_each_layer_takes_its_count() -> None:
    bench = make_bench("flux")
    bench.record(0.8)
    order = torch.arange(TOKENS).expand(BATCH, -1)
    context = Fresh(torch.arange(TEXT).expand(BATCH, -1), (0, 1, 2, 0))
    with LinearRows(bench) as ran:
        bench.replay(0.3, image=Fresh(order, (3, 0, 5, 0)), context=context)
    mlps = {"ff": 3, "ff_context": 1}
    expected = {f"{name}.net.{part}.weight": rows for name, rows in mlps.items() for part in ("0.proj", "2")}
    assert ran.counts == expected | {"proj_mlp.weight": 7, "proj_out.weight": 7}


def test_samples_do_not_depend_on_their_batch(bench: Bench) -> None:
    """Some samples recorded, replayed and refreshed alone are as they are in the whole batch."""
    whole, alone = bench, bench.cache
    whole.record(0.8)
    tokens = Fresh(torch.tensor([[1, 5], [2, 9], [0, 4]]))
    expected = whole.replay(0.3, image=tokens)
    alone.clear()
    for samples in (torch.tensor([2, 0]), torch.tensor([1])):
        bench.record(0.8, samples)
        chosen = Fresh(tokens.order[samples])
        actual = bench.replay(0.3, samples, image=chosen)
        torch.testing.assert_close(actual, expected[samples], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bench.replay(0.3), expected, rtol=1e-4, atol=1e-5)


def test_forecasts_per_layer_run_nothing_and_continue_the_outputs(bench: Bench) -> None:
    """Forecast at a recorded level, the polynomial is the recorded output; and the cache stays as it is."""
    first = bench.record(0.8, keep=2)
    bench.record(0.6, keep=2)
    levels = [torch.full((BATCH,), level) for level in (0.6, 0.8)]
    mode = bench.stack.forecast(bench.cache, levels, lambda history: extrapolate(history, 0.8, 1), TEXT)
    with LinearRows(bench) as ran:
        forecast = bench.finish(mode, 0.8)
    torch.testing.assert_close(forecast, first, rtol=1e-4, atol=1e-5)
    samples = torch.tensor([1])
    mode = bench.stack.forecast(bench.cache, levels, lambda history: extrapolate(history, 0.8, 1), TEXT, samples)
    torch.testing.assert_close(bench.finish(mode, 0.8, samples), first[samples], rtol=1e-4, atol=1e-5)
    assert not ran.counts


@settings(max_examples=50)
@given(st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=1, max_size=6), st.integers(1, 3))
def test_histories_are_those_of_a_ledger(passes: list[set[int]], keep: int) -> None:
    layout = TokenLayout.coarse(3, 2, 2, patch=1)
    cache, ledger = LayerCache(layout), Ledger()
    for step, chosen in enumerate(passes):
        samples = None if step == 0 or len(chosen) == 3 else Samples.of(sorted(chosen), layout.refined.device)
        rows = None if samples is None else samples.rows
        values = torch.randn(3 if rows is None else len(rows), 4, 2)
        ledger.record("residual", values, layout, step, 1 - step / 10, samples, keep)
        cache.begin(rows, keep)
        cache.store("site", values.clone(), 0, rows)
    expected = ledger.history("residual", layout)
    actual = cache.history("site", [level for level, _ in expected])
    for k, (level, values) in enumerate(actual):
        known = level.isfinite()
        torch.testing.assert_close(level[known], expected[k][0][known])
        torch.testing.assert_close(values[known], expected[k][1][known])
    assert all(not level.isfinite().any() for level, _ in expected[len(actual) :])


@given(pairs(), st.integers(0, 3), st.integers(0, 2))
def test_a_transition_moves_image_rows_and_leaves_text(
    layouts: tuple[TokenLayout, TokenLayout], text: int, extra: int
) -> None:
    old, new = layouts
    cache, moved = LayerCache(old), map_tokens(old, new)
    joint = torch.randn(old.batch, text + old.tokens + extra, 2)
    words = torch.randn(old.batch, 4, 2)
    cache.begin()
    cache.store("joint", joint, text)
    cache.store("text", words, None)
    cache.keep_measure("key", "joint", joint[:, text : text + old.tokens, 0])
    cache.move(new, moved)
    after = cache.newest("joint")
    assert torch.equal(after[:, :text], joint[:, :text])
    assert torch.equal(after[:, text + new.tokens :], joint[:, text + old.tokens :])
    assert torch.equal(after[:, text : text + new.tokens], take(joint[:, text : text + old.tokens], moved.source))
    assert torch.equal(cache.newest("text"), words)
    assert torch.equal(cache.measure("key"), after[:, text : text + new.tokens, 0])
    cache.check(new)
    if new is not old:
        with pytest.raises(StaleFeature, match="layer outputs"):
            cache.check(old)


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen"])
def test_value_norms_are_those_of_a_plain_computation(family: str) -> None:
    bench = make_bench(family, ("key", "value"))
    norms: list[Tensor] = []

    def compute(attention: Any, args: tuple[()], inputs: dict[str, Any]) -> None:
        offset = TEXT if family == "flux" and "encoder_hidden_states" not in inputs else 0
        values = nn.functional.linear(inputs["hidden_states"], attention.to_v.weight, attention.to_v.bias)
        norms.append(values[:, offset : offset + TOKENS].norm(dim=-1))

    for block in bench.adapter.blocks(bench.model):
        for name in ("attn", "attn2"):
            if (attention := getattr(block, name, None)) is not None:
                attention.register_forward_pre_hook(compute, with_kwargs=True)
    mode: Any = bench.stack.record(bench.cache, TEXT)
    bench.finish(mode, 0.8)
    torch.testing.assert_close(bench.cache.measure("value"), torch.stack(norms).mean(0))
    assert bench.cache.measure("key").shape == (BATCH, TOKENS)
    assert not mode.given, "what projections gave is held until it is measured, no longer"
    with pytest.raises(ValueError, match="measure 'change' is not kept; kept are key, value"):
        bench.cache.measure("change")


@pytest.mark.parametrize(("family", "layer", "name"), [
    ("flux", 0, "attn"), ("flux", 2, "attn"), ("sd3", 0, "attn"), ("sd3", 0, "attn2"), ("sd3", 1, "attn"),
    ("qwen", 1, "attn"),
])  # fmt: skip
def test_attention_measured_is_that_which_the_model_applies(family: str, layer: int, name: str) -> None:
    """With values that are one at a single token and zero elsewhere, what attention gives is that token's column."""
    bench, spot = make_bench(family, ("attention",)), 7
    single = bench.stack.singles[layer]
    attention = getattr(bench.adapter.blocks(bench.model)[layer], name)
    mixed: list[Tensor] = []
    place = torch.tensor([spot + (TEXT if single else 0)])
    attention.to_v.register_forward_hook(lambda m, a, out: torch.zeros_like(out).index_fill(1, place, 1.0))
    if single:
        attention.register_forward_hook(lambda m, a, out: mixed.append(out))
    else:
        attention.to_out[0].register_forward_pre_hook(lambda m, a: mixed.append(a[0]))
    if getattr(attention, "add_v_proj", None) is not None:
        attention.add_v_proj.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
        attention.to_add_out.register_forward_pre_hook(lambda m, a: mixed.append(a[0]))
    bench.record(0.8)
    column = bench.cache._measures["attention"][f"{layer}.{name}.0"][:, spot]
    torch.testing.assert_close(column, torch.cat(mixed, 1).mean(-1).sum(1))
    assert bench.cache.measure("attention").shape == (BATCH, TOKENS)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_attention_received_sums_to_the_number_of_queries(queries: int, keys: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, length, 2, 4, generator=generator) for length in (queries, keys))
    columns = received(query, key, chunk)
    torch.testing.assert_close(columns.sum(1), torch.full((2,), float(queries)))
    torch.testing.assert_close(columns, received(query, key))


def test_it_stacks_with_block_skipping(bench: Bench) -> None:
    stock = bench.call(0.8)
    hooks, blocks = BlockStack(bench.model, bench.adapter, TaylorSeer(), object(), bench.bare.state), bench.bare.stack
    blocks.skip(torch.zeros(BATCH, TOKENS, 32))
    with LinearRows(bench) as ran:
        bench.record(0.8)
    assert not ran.counts and not bench.cache.sites
    blocks.run()
    recorded = bench.record(0.8)
    assert torch.equal(recorded, stock) and blocks.take().shape == (BATCH, TOKENS, 32)
    assert torch.equal(bench.replay(0.8), stock)
    bench.stack.remove()
    hooks.remove()
    assert torch.equal(bench.call(0.8), stock)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_remove_leaves_no_hook(family: str) -> None:
    bench = make_bench(family, ("key", "value", "attention"))
    bench.record(0.8)
    bench.stack.remove()
    for module in bench.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert stock_of(type(module)) is type(module)
        assert not any(name.startswith("_ralu_cache") for name in vars(module))
        if hasattr(module, "_diffusers_hook"):
            assert not HookRegistry.check_if_exists_or_initialize(module).hooks


def test_a_replay_before_any_record_is_refused(bench: Bench) -> None:
    mode = bench.stack.replay(bench.cache, TEXT)
    with pytest.raises(ValueError, match=r"nothing was recorded at '0\.attn\.0'"):
        bench.finish(mode, 0.8)


def test_what_cannot_be_served_is_refused() -> None:
    bench = make_bench("sd3")
    bench.model.enable_forward_chunking(2)
    with pytest.raises(ValueError, match="feed-forward chunk size of 2 is not supported"):
        bench.record(0.8)
    with pytest.raises(ValueError, match="token measure must be one of key, value, attention, got 'size'"):
        LayerStack(bench.model, bench.adapter, object(), ("size",))
    with pytest.raises(ValueError, match=r"counts must be from 0 to 4, got \(5,\)"):
        Fresh(torch.zeros(1, 4, dtype=torch.int64), (5,))
    with pytest.raises(ValueError, match="order must be"):
        Fresh(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="counts must be given for every layer, got 1 for layer 2"):
        Fresh(torch.zeros(1, 4, dtype=torch.int64), (1,)).at(2)
    with pytest.raises(ValueError, match="keep must be 1 or more, got 0"):
        bench.cache.begin(keep=0)


def test_measures_of_fused_projections_are_refused() -> None:
    bench = make_bench("flux", ("value",))
    bench.model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="fused projections is not supported"):
        bench.record(0.8)
