"""Row-sparse attention: some tokens ask, all tokens answer, the others from a memory of their keys and values.

Every block of a diffusion transformer is row-wise but for its attention. So a few tokens can be run through stock
blocks alone, if what they attend to is remembered for the rest. Pure tensors; sigma 1 is noise, 0 clean.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ralu_cache.canvas import TokenLayout
from ralu_cache.feature import StaleFeature
from ralu_cache.token_map import TokenMap, put_, take

SMALLEST_STEP = 1e-5  # of sigma; over a smaller one no slope is taken

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (k, q, H, d), keys and values (k, L, H, d) -> (k, q, H, d)."""


@dataclass
class Layer:
    """One attention layer's memory: keys and values (B, L, 2 H d), the image tokens from `offset` on.

    slope: (B, n, 2 H d), change of the image tokens' entries with sigma; None where they are not forecast.
    """

    latest: Tensor
    slope: Tensor | None
    offset: int


class KeyValueMemory:
    """The latest keys and values of every token of one layout, by attention layer; fresh tokens overwrite theirs.

    How far an image token's entry holds is what the ledger says of its residual: both are computed in the same pass.
    With `forecast` an entry is read as it would be now, on the line through its last two computed values: on a model
    that was tried, tokens that attend to what was computed some steps ago come out worse than their own forecast
    (`benchmarks/results/composition`).
    """

    def __init__(self, layout: TokenLayout, forecast: bool = True) -> None:
        self.layout = layout
        self.forecast = forecast
        self._layers: dict[str, Layer] = {}
        self._now: dict[torch.Size, Tensor] = {}  # what `overwrite` returns: new memory costs as much as a forecast

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        tensors = [tensor for layer in self._layers.values() for tensor in (layer.latest, layer.slope)]
        return sum(tensor.nbytes for tensor in (*tensors, *self._now.values()) if tensor is not None)

    def store(self, name: str, entries: Tensor, offset: int, rows: Rows) -> None:
        """Keep what was computed for every token of the call's samples: entries (k, L, 2 H d)."""
        layer = self._layers.get(name)
        image = slice(offset, offset + self.layout.tokens)
        if layer is None:
            whole = entries.new_zeros(self.layout.batch, *entries.shape[1:])
            slope = torch.zeros_like(whole[:, image]) if self.forecast else None
            layer = self._layers[name] = Layer(whole, slope, offset)
        if layer.slope is not None:
            old = rows.of(layer.latest)[:, image]
            rows.write(layer.slope, _slope(old, entries[:, image], rows.ahead))
        rows.write(layer.latest, entries)

    def overwrite(self, name: str, entries: Tensor, rows: Rows) -> Tensor:
        """Put the fresh rows' entries (k, q, 2 H d) in their places; returns all (k, L, 2 H d) of the samples, now.

        What is returned holds until the next call.
        """
        layer = self._layers[name]
        latest = now = rows.of(layer.latest)
        index = rows.joint(latest.shape[1], layer.offset, entries.shape[1])
        if layer.slope is not None:
            assert rows.tokens is not None
            image = slice(layer.offset, layer.offset + self.layout.tokens)
            slope, tokens = rows.of(layer.slope), rows.tokens
            new = entries[:, layer.offset : layer.offset + tokens.shape[1]]
            fresh = _slope(take(latest[:, image], tokens), new, rows.ahead.gather(1, tokens))
            now = self._forecast(latest, slope, rows.ahead, image)
            put_(now, index, entries)
            rows.write(layer.slope, put_(slope, tokens, fresh))
        rows.write(layer.latest, put_(latest, index, entries))
        return now

    def _forecast(self, latest: Tensor, slope: Tensor, ahead: Tensor, image: slice) -> Tensor:
        """Entries (k, L, 2 H d), those of the image tokens on the line through their last two values."""
        if latest.shape not in self._now:
            self._now[latest.shape] = torch.empty_like(latest)
        now = self._now[latest.shape]
        torch.addcmul(latest[:, image], slope, ahead[..., None].to(slope.dtype), out=now[:, image])
        for others in (slice(0, image.start), slice(image.stop, None)):
            now[:, others] = latest[:, others]
        return now

    def transfer(self, layout: TokenLayout, tokens: TokenMap) -> None:
        """Move every layer to another layout: a SPLIT token gets its parent's entry, a MERGED one its first child's."""
        count = self.layout.tokens
        for layer in self._layers.values():
            before, image, after = layer.latest.split(
                [layer.offset, count, layer.latest.shape[1] - layer.offset - count], 1
            )
            layer.latest = torch.cat([before, take(image, tokens.source), after], 1)
            layer.slope = None if layer.slope is None else take(layer.slope, tokens.source)
        self.layout, self._now = layout, {}

    def check(self, layout: TokenLayout) -> None:
        """Raises StaleFeature under another layout object than the memory's own."""
        if layout is not self.layout:
            raise StaleFeature("keys and values", self.layout, layout)

    def norms(self, kind: str) -> Tensor:
        """(B, n) float32: norm of each image token's "key" or "value", mean over layers."""
        found = []
        for layer in self._layers.values():
            halves = layer.latest[:, layer.offset : layer.offset + self.layout.tokens].float().chunk(2, -1)
            found.append(halves[kind == "value"].norm(dim=-1))
        return torch.stack(found).mean(0)


@dataclass(frozen=True, eq=False)
class Rows:
    """The part of a batch's tokens that a denoiser call runs through the blocks.

    text: text tokens, which are all there. ahead: (k, n) float32, how far sigma is now beyond the level at which each
    image token was computed last; 0 where nothing may be concluded from that. samples: (k,) int64 of the memory's
    batch, None for all. tokens: (k, m) int64 image tokens, None for all of them, in order. counts: how many of the m
    are meant, per sample; the others repeat the first one.
    """

    memory: KeyValueMemory
    text: int
    ahead: Tensor
    samples: Tensor | None = None
    tokens: Tensor | None = None
    counts: tuple[int, ...] = ()
    _places: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)
    _packings: dict[tuple[int, int], Packing] = field(default_factory=dict, repr=False)

    def attend(
        self,
        layer: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        offset: int,
        attention: Attention,
        masked: bool = False,
    ) -> Tensor:
        """Attention of the call's tokens to all tokens of their samples: (k, q, H, d) -> (k, q, H, d).

        Keeps their keys and values. `offset`: where the image tokens begin in the call; `attention`: the stock one;
        `masked`: whether it leaves out some keys, so that nothing else can stand in for it.
        """
        entries = torch.cat([key.flatten(2), value.flatten(2)], -1)
        if self.tokens is None:
            self.memory.store(layer, entries, offset, self)
            return attention(query, key, value)
        halves = self.memory.overwrite(layer, entries, self).chunk(2, -1)
        key, value = (half.unflatten(-1, key.shape[2:]) for half in halves)
        if masked or not packs(query.device, self.counts):
            return attention(query, key, value)
        fixed = query.shape[1] - self.tokens.shape[1]
        packing, first = self._packing(offset, fixed), fixed if offset else 0
        result = packed_attention(query, key, value, packing)
        return torch.where(packing.meant[..., None, None], result, result[:, first : first + 1])  # fillers: the first

    def of(self, whole: Tensor) -> Tensor:
        """The samples' part of something that is held for the whole batch."""
        return whole if self.samples is None else whole[self.samples]

    def write(self, whole: Tensor, part: Tensor) -> None:
        """Put the samples' part back in its place."""
        if self.samples is not None:
            whole[self.samples] = part
        elif part is not whole:
            whole.copy_(part)

    def joint(self, length: int, offset: int, present: int) -> Tensor:
        """(k, q) int64: the places, in a sequence of `length`, of the `present` rows of the call.

        Besides image tokens a call brings all text: it stands before them, or behind them if their offset is 0.
        Reference tokens behind a FLUX image are never fresh.
        """
        assert self.tokens is not None
        if (key := (length, offset, present)) not in self._places:
            fixed = present - self.tokens.shape[1]
            start = 0 if offset else length - fixed
            others = torch.arange(start, start + fixed, device=self.tokens.device).expand(len(self.tokens), -1)
            parts = [others, self.tokens + offset] if offset else [self.tokens, others]
            self._places[key] = torch.cat(parts, 1)
        return self._places[key]

    def _packing(self, offset: int, fixed: int) -> Packing:
        """Without the rows that only fill up, which repeat the first; made once for all layers of a kind."""
        assert self.tokens is not None
        if (key := (offset, fixed)) not in self._packings:
            image = self.tokens != self.tokens[:, :1]
            image[:, :1] = True
            others = image.new_ones(len(image), fixed)
            meant = torch.cat([others, image] if offset else [image, others], 1)
            self._packings[key] = Packing(meant, tuple(fixed + count for count in self.counts))
        return self._packings[key]


@dataclass(frozen=True, eq=False)
class Packing:
    """Which rows of a call stand in the one sequence of all samples; known on the host, so that no layer waits for it.

    meant: (k, q) bool. lengths: how many of each sample.
    """

    meant: Tensor
    lengths: tuple[int, ...]
    _masks: dict[int, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def index(self) -> Tensor:
        """(sum of lengths,) int64: the rows that are meant, in order, counted over all samples."""
        order = self.meant.flatten().to(torch.uint8).argsort(descending=True, stable=True)
        return order[: sum(self.lengths)]

    def mask(self, keys: int) -> Any:
        """What keeps each sample to its own `keys` in xformers' attention."""
        if keys not in self._masks:
            from xformers.ops.fmha.attn_bias import BlockDiagonalMask

            self._masks[keys] = BlockDiagonalMask.from_seqlens(list(self.lengths), [keys] * len(self.lengths))
        return self._masks[keys]


def _slope(old: Tensor, new: Tensor, ahead: Tensor) -> Tensor:
    """Change with sigma from old to new entries (k, m, e), `ahead` (k, m) apart; 0 where that is next to nothing."""
    far = (ahead.abs() > SMALLEST_STEP)[..., None]
    return torch.where(far, (new - old) / torch.where(far, ahead[..., None], 1.0).to(new.dtype), 0.0)


def packs(device: torch.device, counts: tuple[int, ...]) -> bool:
    """True where samples with unequal numbers of rows are packed: on CUDA, with xformers installed."""
    return len(set(counts)) > 1 and device.type == "cuda" and importlib.util.find_spec("xformers") is not None


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """Exact attention of the rows that are meant, all samples in one sequence without the filling ones.

    query (k, q, H, d), key and value (k, L, H, d) -> (k, q, H, d), zero in rows that are not meant. Raises ImportError
    without xformers, and what xformers raises where it has no kernel, as on a CPU.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError("packed attention needs xformers: pip install 'ralu-cache[xformers]'") from error
    rows = query.flatten(0, 1)
    found = memory_efficient_attention(
        rows[packing.index][None], key.flatten(0, 1)[None], value.flatten(0, 1)[None],
        attn_bias=packing.mask(key.shape[1]),
    )  # fmt: skip
    return torch.zeros_like(rows).index_copy(0, packing.index, found[0]).view_as(query)
