"""The memory of keys and values, and attention of some tokens to all; pure tensors."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.history import attention
from ralu_cache.history.attention import KeyValueMemory, Rows
from ralu_cache.history.feature import StaleFeature
from ralu_cache.history.packing import Packing, packed_attention, packs
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, map_tokens, put, take
from tests.strategies import layouts, pairs

TEXT, HEADS, SIZE = 3, 2, 4
WIDTH = 2 * HEADS * SIZE  # of an entry: key and value
HAS_XFORMERS = importlib.util.find_spec("xformers") is not None
seeds = st.integers(0, 10**6)
offsets = st.sampled_from([0, TEXT])  # text behind the image as in SD3, or before it as in FLUX
on_cuda = pytest.mark.skipif(not torch.cuda.is_available() or not HAS_XFORMERS, reason="needs CUDA and xformers")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_of(batch: int, count: int, chosen: int, seed: int) -> Tensor:
    """(B, chosen) int64: different ones of `count`, in random order, others in each sample."""
    return drawn(batch, count, seed=seed).argsort(1)[:, :chosen]


def everything(layout: TokenLayout, ahead: float = 0.0, memory: KeyValueMemory | None = None) -> Rows:
    memory = KeyValueMemory(layout) if memory is None else memory
    ahead_of = torch.full((layout.batch, layout.tokens), ahead)
    return memory.begin(TEXT, ahead_of, torch.zeros_like(ahead_of))


def call_of(
    memory: KeyValueMemory, ahead: Tensor, tokens: Tensor, samples: Tensor | None = None, gap: Tensor | None = None
) -> Rows:
    gap = torch.zeros_like(ahead) if gap is None else gap
    return memory.begin(TEXT, ahead, gap, samples, tokens, (tokens.shape[1],) * len(tokens))


def image_of(entries: Tensor, layout: TokenLayout, offset: int) -> Tensor:
    return entries[:, offset : offset + layout.tokens]


def lines_of(memory: KeyValueMemory, name: str, ahead: float = -0.1, gap: float = -0.1) -> Tensor:
    """(B, n, 2 H d): the image tokens' entries as a call reads them that brings text alone, and that never was."""
    memory, layout = deepcopy(memory), memory.layout
    none = torch.empty(layout.batch, 0, dtype=torch.int64)
    ahead_of, gap_of = (torch.full((layout.batch, layout.tokens), value) for value in (ahead, gap))
    rows = memory.begin(TEXT, ahead_of, gap_of, None, none)
    layer = memory._layers[name]
    text = layer.slots.new_zeros(layout.batch, min(TEXT, layer.slots.shape[2] - layout.tokens), WIDTH)
    return image_of(memory.overwrite(name, text, rows), layout, layer.offset).clone()


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value))).transpose(1, 2)


# ---- the memory


@given(layouts(), offsets, st.data(), seeds)
def test_fresh_rows_overwrite_theirs_and_no_other_samples_or_tokens(
    layout: TokenLayout, offset: int, data: st.DataObject, seed: int
) -> None:
    memory = KeyValueMemory(layout, forecast=data.draw(st.booleans()))
    entries = drawn(layout.batch, TEXT + layout.tokens, WIDTH, seed=seed)
    memory.store("a", entries, offset, everything(layout, memory=memory))
    before = memory.newest("a")
    samples = torch.tensor(data.draw(st.sets(st.integers(0, layout.batch - 1), min_size=1).map(sorted)))
    count = data.draw(st.integers(1, layout.tokens))
    tokens = some_of(len(samples), layout.tokens, count, seed)
    rows = call_of(memory, torch.zeros(len(samples), layout.tokens), tokens, samples)
    fresh = drawn(len(samples), TEXT + count, WIDTH, seed=seed + 1)
    now = memory.overwrite("a", fresh, rows)
    expected = before.clone()
    text, image = fresh.split([TEXT, count], 1) if offset else fresh.split([count, TEXT], 1)[::-1]
    where = slice(0, TEXT) if offset else slice(layout.tokens, None)
    expected[samples, where] = text
    for row, sample in enumerate(samples):
        expected[sample, offset + tokens[row]] = image[row]
    assert torch.equal(memory.newest("a"), expected)
    assert torch.equal(now, expected[samples])


@given(layouts(), offsets, st.integers(1, 4), st.floats(0.05, 0.4), seeds)
def test_entries_linear_in_sigma_are_read_as_they_would_be_now(
    layout: TokenLayout, offset: int, sparse: int, step: float, seed: int
) -> None:
    """Two full steps, then some with a few tokens each: every token lies on its own line, whenever it was computed."""
    at_0, slope = drawn(2, layout.batch, TEXT + layout.tokens, WIDTH, seed=seed).unbind()
    memory, sigma = KeyValueMemory(layout), 1.0
    levels = torch.full((layout.batch, layout.tokens), sigma)
    memory.store("a", at_0 + sigma * slope, offset, everything(layout, memory=memory))
    sigma -= step
    gap = sigma - levels
    memory.store("a", at_0 + sigma * slope, offset, memory.begin(TEXT, gap, torch.zeros_like(gap)))
    levels[:] = sigma
    for k in range(sparse):
        sigma -= step
        expected = at_0 + sigma * slope
        tokens = some_of(layout.batch, layout.tokens, 1 + k % layout.tokens, seed + k)
        rows = call_of(memory, sigma - levels, tokens, gap=gap)
        now = memory.overwrite("a", take(expected, rows.joint(expected.shape[1], offset, TEXT + tokens.shape[1])), rows)
        torch.testing.assert_close(now, expected, atol=1e-4, rtol=1e-4)
        gap = gap.scatter(1, tokens, (sigma - levels).gather(1, tokens))
        levels.scatter_(1, tokens, sigma)


@given(layouts(), offsets, seeds)
def test_without_a_forecast_entries_are_read_as_they_were(layout: TokenLayout, offset: int, seed: int) -> None:
    lines, flat = KeyValueMemory(layout), KeyValueMemory(layout, forecast=False)
    first, second, fresh = drawn(3, layout.batch, TEXT + layout.tokens, WIDTH, seed=seed).unbind()
    for memory in (lines, flat):
        memory.store("a", first, offset, everything(layout, memory=memory))
        memory.store("a", second, offset, everything(layout, -0.1, memory))
    tokens = some_of(layout.batch, layout.tokens, 1, seed)
    rows = call_of(flat, torch.full((layout.batch, layout.tokens), -0.1), tokens)
    places = rows.joint(first.shape[1], offset, TEXT + 1)
    assert torch.equal(flat.overwrite("a", take(fresh, places), rows), put(second, places, take(fresh, places)))
    assert lines.nbytes - flat.nbytes == first.nbytes
    assert flat.nbytes == first.nbytes + layout.batch * layout.tokens * 8 and len(flat) == 1


@given(layouts(), seeds, st.sampled_from([0.0, 1e-6, -1e-6]))
def test_no_line_is_drawn_where_nothing_may_be_concluded(layout: TokenLayout, seed: int, ahead: float) -> None:
    """After a parent's entry, changed noise, or a step too small: `ahead` is about 0."""
    memory = KeyValueMemory(layout)
    first, second = drawn(2, layout.batch, TEXT + layout.tokens, WIDTH, seed=seed).unbind()
    memory.store("a", first, TEXT, everything(layout, memory=memory))
    memory.store("a", second, TEXT, everything(layout, ahead, memory))
    assert torch.equal(lines_of(memory, "a", 0.3, gap=ahead), image_of(second, layout, TEXT))


@given(pairs(), offsets, seeds)
def test_a_transition_moves_keys_and_values(both: tuple[TokenLayout, TokenLayout], offset: int, seed: int) -> None:
    """(2) KEPT tokens keep their bits, with their slopes; SPLIT ones get their parent's, MERGED ones a child's."""
    old, new = both
    memory = KeyValueMemory(old)
    extra = 2 if offset else 0  # reference tokens behind a FLUX image
    for k, ahead in enumerate((0.0, -0.1)):
        entries = drawn(old.batch, TEXT + old.tokens + extra, WIDTH, seed=seed + k)
        rows = everything(old, ahead, memory)
        memory.store("a", entries, offset, rows)
        memory.store("image only", entries[:, : old.tokens], 0, rows)
    names = tuple(memory._layers)
    latest, lines = ({name: read(name) for name in names} for read in (memory.newest, partial(lines_of, memory)))
    moved = map_tokens(old, new)
    memory.move(new, moved)
    memory.check(new)
    with pytest.raises(StaleFeature, match=f"keys and values.*{id(new):#x}.*not to.*{id(old):#x}"):
        memory.check(old)
    for name in names:
        start, now, then, line = memory._layers[name].offset, memory.newest(name), latest[name], lines_of(memory, name)
        assert torch.equal(now[:, :start], then[:, :start])
        assert torch.equal(now[:, start + new.tokens :], then[:, start + old.tokens :])
        for b in range(old.batch):
            for j in range(new.tokens):
                parent = int(moved.source[b, j])
                assert torch.equal(now[b, start + j], then[b, start + parent]), Kind(int(moved.kind[b, j]))
                assert torch.equal(line[b, j], lines[name][b, parent])


@given(layouts(), seeds)
def test_norms_are_means_over_layers(layout: TokenLayout, seed: int) -> None:
    memory = KeyValueMemory(layout)
    entries = drawn(2, layout.batch, TEXT + layout.tokens, WIDTH, seed=seed)
    rows = everything(layout, memory=memory)
    memory.store("a", entries[0], TEXT, rows)
    memory.store("b", entries[1], 0, rows)
    image = torch.stack([image_of(entries[0], layout, TEXT), image_of(entries[1], layout, 0)])
    for kind, half in (("key", image[..., : WIDTH // 2]), ("value", image[..., WIDTH // 2 :])):
        torch.testing.assert_close(memory.norms(kind), half.norm(dim=-1).mean(0))


# ---- attention of some rows to all


@given(layouts(), offsets, st.data(), seeds)
def test_chosen_tokens_attend_as_in_a_full_call(
    layout: TokenLayout, offset: int, data: st.DataObject, seed: int
) -> None:
    memory, length = KeyValueMemory(layout), TEXT + layout.tokens
    parts = drawn(3, layout.batch, length, HEADS, SIZE, seed=seed).unbind()
    whole = everything(layout, memory=memory).attend("a", *parts, offset, exact)
    assert torch.equal(whole, exact(*parts))
    tokens = some_of(layout.batch, layout.tokens, data.draw(st.integers(1, layout.tokens)), seed)
    rows = call_of(memory, torch.zeros(layout.batch, layout.tokens), tokens)
    places = rows.joint(length, offset, TEXT + tokens.shape[1])
    index = places[..., None, None].expand(-1, -1, HEADS, SIZE)
    found = rows.attend("a", *(part.gather(1, index) for part in parts), offset, exact)
    torch.testing.assert_close(found, whole.gather(1, index))


def test_unequal_numbers_of_rows_are_packed_on_cuda_with_xformers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in ((object(), True), (None, False)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        assert packs(torch.device("cuda"), (2, 3)) is expected
        assert not packs(torch.device("cuda"), (2, 2)) and not packs(torch.device("cpu"), (2, 3))


@pytest.mark.skipif(HAS_XFORMERS, reason="xformers is installed")
def test_packed_attention_names_what_it_needs() -> None:
    query = torch.zeros(1, 2, HEADS, SIZE)
    with pytest.raises(ImportError, match=r"ralu-cache\[xformers\]"):
        packed_attention(query, query, query, Packing(torch.ones(1, 2, dtype=torch.bool), (2,)))


def one_by_one(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """What packed attention is to give."""
    assert tuple(packing.meant.sum(1).tolist()) == packing.lengths
    assert torch.equal(packing.index, packing.meant.flatten().nonzero()[:, 0])
    whole = torch.zeros_like(query)
    for sample, of_sample in enumerate(packing.meant):
        chosen = query[sample : sample + 1, of_sample]
        whole[sample, of_sample] = exact(chosen, key[sample : sample + 1], value[sample : sample + 1])[0]
    return whole


@pytest.mark.parametrize("offset", [0, TEXT])
def test_rows_that_fill_up_are_like_the_first_also_when_packed(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written to the same place as the first one, so what they hold must be the same."""
    monkeypatch.setattr(attention, "packs", lambda device, counts: True)
    monkeypatch.setattr(attention, "packed_attention", one_by_one)
    layout = TokenLayout.coarse(2, 2, 3, patch=2)
    memory = KeyValueMemory(layout)
    parts = drawn(3, 2, TEXT + 6, HEADS, SIZE, seed=0).unbind()
    whole = everything(layout, memory=memory).attend("a", *parts, offset, exact)
    tokens = torch.tensor([[4, 4, 4], [0, 2, 5]])
    rows = memory.begin(TEXT, torch.zeros(2, 6), torch.zeros(2, 6), None, tokens, (1, 3))
    index = rows.joint(TEXT + 6, offset, TEXT + 3)[..., None, None].expand(-1, -1, HEADS, SIZE)
    found = rows.attend("a", *(part.gather(1, index) for part in parts), offset, exact)
    torch.testing.assert_close(found, whole.gather(1, index))


def test_masked_attention_is_never_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed one knows nothing of the keys that are left out."""
    monkeypatch.setattr(attention, "packs", lambda device, counts: True)
    monkeypatch.setattr(attention, "packed_attention", lambda *_: pytest.fail("packed"))
    layout = TokenLayout.coarse(2, 2, 3, patch=2)
    memory = KeyValueMemory(layout)
    parts = drawn(3, 2, TEXT + 6, HEADS, SIZE, seed=0).unbind()
    whole = everything(layout, memory=memory).attend("a", *parts, TEXT, exact, masked=True)
    tokens = torch.tensor([[4, 4, 4], [0, 2, 5]])
    rows = memory.begin(TEXT, torch.zeros(2, 6), torch.zeros(2, 6), None, tokens, (1, 3))
    index = rows.joint(TEXT + 6, TEXT, TEXT + 3)[..., None, None].expand(-1, -1, HEADS, SIZE)
    found = rows.attend("a", *(part.gather(1, index) for part in parts), TEXT, exact, masked=True)
    torch.testing.assert_close(found, whole.gather(1, index))


@on_cuda
def test_packed_attention_is_exact() -> None:
    query, key, value = (drawn(3, count, HEADS, 32, seed=count).cuda() for count in (9, 70, 70))
    value = value.flip(1)
    meant = (torch.arange(9) < torch.tensor([[9], [1], [4]])).cuda()
    packing = Packing(meant, (9, 1, 4))
    found = packed_attention(query, key, value, packing)
    torch.testing.assert_close(found[meant], one_by_one(query, key, value, packing)[meant], atol=1e-3, rtol=1e-3)
