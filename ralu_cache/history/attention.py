"""Row-sparse attention: some tokens ask, all tokens answer, the others from a memory of their keys and values.

Every block of a diffusion transformer is row-wise but for its attention. So a few tokens can be run through stock
blocks alone, if what they attend to is remembered for the rest. Pure tensors; sigma 1 is noise, 0 clean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ralu_cache.history.feature import StaleFeature
from ralu_cache.history.packing import Packing, packed_attention, packs
from ralu_cache.history.residuals import SMALLEST_GAP
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import TokenMap, take

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (k, q, H, d), keys and values (k, L, H, d) -> (k, q, H, d)."""


@dataclass
class Layer:
    """One attention layer's memory: slots of keys and values (S, B, L, 2 H d), the image tokens from `offset` on."""

    slots: Tensor
    offset: int


class KeyValueMemory:
    """The latest keys and values of every token of one layout, by attention layer; fresh tokens overwrite theirs.

    When an image token's entry was computed, and how far it holds, is what the ledger says of its residual: both are
    computed in the same pass.
    With `forecast` an entry is read as it would be now, on the line through its last two computed values: on a model
    that was tried, tokens that attend to what was computed some steps ago come out worse than their own forecast
    (`benchmarks/results/composition`). Then there are two slots, and a fresh entry takes the place of the older one: to
    write a few tokens and read all of them on their lines costs one copy and one pass over the memory a layer.
    Everything else (text, reference tokens) lies in the first slot.
    """

    def __init__(self, layout: TokenLayout, forecast: bool = True) -> None:
        self.layout = layout
        self.forecast = forecast
        shape, device = (layout.batch, layout.tokens), layout.refined.device
        self._newest = torch.zeros(shape, dtype=torch.int64, device=device)  # the slot of each image token's newest
        self._layers: dict[str, Layer] = {}
        self._now: dict[torch.Size, Tensor] = {}  # what `overwrite` returns: new memory costs as much as a forecast

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        tensors = [layer.slots for layer in self._layers.values()]
        return sum(tensor.nbytes for tensor in (*tensors, *self._now.values(), self._newest))

    def begin(
        self,
        text: int,
        ahead: Tensor,
        gap: Tensor | None = None,
        samples: Tensor | None = None,
        tokens: Tensor | None = None,
        counts: tuple[int, ...] = (),
    ) -> Rows:
        """A pass of some tokens through all layers begins: see `Rows` for the arguments."""
        batch = slice(None) if samples is None else samples
        newest = self._newest[batch]
        fresh = torch.arange(self.layout.tokens, device=ahead.device).expand_as(ahead) if tokens is None else tokens
        if not self.forecast:
            return Rows(self, text, samples, tokens, counts, newest.gather(1, fresh), ahead)
        gap = torch.zeros_like(ahead) if gap is None else gap
        far = gap.abs() > SMALLEST_GAP
        reach = torch.where(far, ahead / torch.where(far, gap, 1.0), 0.0)
        slots = 1 - newest.gather(1, fresh)
        weight = (newest + (2 * newest - 1) * reach).scatter(1, fresh, slots.to(reach.dtype))
        self._newest[batch] = newest.scatter(1, fresh, slots)
        return Rows(self, text, samples, tokens, counts, slots, weight)

    def store(self, name: str, entries: Tensor, offset: int, rows: Rows) -> None:
        """Keep what was computed for the call's tokens: entries (k, q, 2 H d), at first those of all tokens."""
        layer = self._layers.get(name)
        if layer is None:
            slots = entries.new_zeros(2 if self.forecast else 1, self.layout.batch, *entries.shape[1:])
            layer = self._layers[name] = Layer(slots, offset)
        length = layer.slots.shape[2]
        layer.slots.flatten(0, 2)[rows.places(length, offset, entries.shape[1])] = entries.flatten(0, 1)

    def overwrite(self, name: str, entries: Tensor, rows: Rows) -> Tensor:
        """Put the fresh rows' entries (k, q, 2 H d) in their places; returns all (k, L, 2 H d) of the samples, now.

        What is returned holds until the next call.
        """
        layer = self._layers[name]
        self.store(name, entries, layer.offset, rows)
        slots = layer.slots if rows.samples is None else layer.slots[:, rows.samples]
        if not self.forecast:
            return slots[0]
        if slots.shape[1:] not in self._now:
            self._now[slots.shape[1:]] = torch.empty_like(slots[0])
        weight = rows.weights(slots.shape[2], layer.offset, entries.dtype)
        return torch.lerp(slots[0], slots[1], weight, out=self._now[slots.shape[1:]])

    def newest(self, name: str) -> Tensor:
        """(B, L, 2 H d): the latest computed entries of one layer, a copy."""
        layer = self._layers[name]
        entries = layer.slots[0].clone()
        if self.forecast:
            image = slice(layer.offset, layer.offset + self.layout.tokens)
            entries[:, image] = torch.where(self._newest[..., None] == 1, layer.slots[1, :, image], entries[:, image])
        return entries

    def move(self, layout: TokenLayout, tokens: TokenMap) -> None:
        """Move every layer to another layout: a SPLIT token gets its parent's entry, a MERGED one its first child's."""
        count = self.layout.tokens
        for layer in self._layers.values():
            before, image, after = layer.slots.split(
                [layer.offset, count, layer.slots.shape[2] - layer.offset - count], 2
            )
            moved = torch.stack([take(slot, tokens.source) for slot in image])
            layer.slots = torch.cat([before, moved, after], 2)
        self._newest = take(self._newest, tokens.source)
        self.layout, self._now = layout, {}

    def pick(self, rows: Tensor, layout: TokenLayout) -> KeyValueMemory:
        """What is remembered of the samples `rows` (k,) int64, under a `layout` that has theirs."""
        part = KeyValueMemory(layout, self.forecast)
        part._newest = self._newest[rows]
        part._layers = {name: Layer(layer.slots[:, rows], layer.offset) for name, layer in self._layers.items()}
        return part

    def check(self, layout: TokenLayout) -> None:
        """Raises StaleFeature under another layout object than the memory's own."""
        if layout is not self.layout:
            raise StaleFeature("keys and values", self.layout, layout)

    def norms(self, kind: str) -> Tensor:
        """(B, n) float32: norm of each image token's "key" or "value", mean over layers."""
        found = []
        for name, layer in self._layers.items():
            image = self.newest(name)[:, layer.offset : layer.offset + self.layout.tokens]
            found.append(image.float().chunk(2, -1)[kind == "value"].norm(dim=-1))
        return torch.stack(found).mean(0)


@dataclass(frozen=True, eq=False)
class Rows:
    """The part of a batch's tokens that a denoiser call runs through the blocks; `KeyValueMemory.begin` makes it.

    text: text tokens, which are all there. samples: (k,) int64 of the memory's batch, None for all. tokens: (k, m)
    int64 image tokens, None for all of them, in order. counts: how many of the m are meant, per sample; the others
    repeat the first one. slots: (k, m) int64, where in the memory each of them is written. weight: (k, n) float32,
    where each image token's entry now lies on the line from the first slot (0) to the second (1).

    `begin` is given, in place of the last two, (k, n) float32 both: `ahead`, how far sigma is now beyond the level at
    which each image token was computed last, 0 where nothing may be concluded from that; `gap`, how far that level is
    beyond the one of its computation before, 0 (or None) where no line may be drawn through both.
    """

    memory: KeyValueMemory
    text: int
    samples: Tensor | None
    tokens: Tensor | None
    counts: tuple[int, ...]
    slots: Tensor
    weight: Tensor
    _made: dict[tuple[object, ...], Tensor] = field(default_factory=dict, repr=False)  # once for all layers
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

    def joint(self, length: int, offset: int, present: int) -> Tensor:
        """(k, q) int64: the places, in a sequence of `length`, of the `present` rows of the call.

        Besides image tokens a call brings all text: it stands before them, or behind them if their offset is 0.
        Reference tokens behind a FLUX image are never fresh. With all tokens, a row's place is its own number.
        """
        if (key := ("joint", length, offset, present)) not in self._made:
            if self.tokens is None:
                found = torch.arange(present, device=self.slots.device).expand(len(self.slots), -1)
            else:
                found = self._beside(self.tokens + offset, length, offset, present)
            self._made[key] = found
        return self._made[key]

    def places(self, length: int, offset: int, present: int) -> Tensor:
        """(k q,) int64: where in a layer's memory (S B L, 2 H d) each row of the call is written."""
        if (key := ("places", length, offset, present)) not in self._made:
            joint = self.joint(length, offset, present)
            slots = torch.zeros_like(joint)
            first = offset if self.tokens is None or not offset else present - self.tokens.shape[1]
            slots[:, first : first + self.slots.shape[1]] = self.slots
            batch = self.memory.layout.batch
            samples = torch.arange(batch, device=joint.device) if self.samples is None else self.samples
            self._made[key] = ((slots * batch + samples[:, None]) * length + joint).flatten()
        return self._made[key]

    def weights(self, length: int, offset: int, dtype: torch.dtype) -> Tensor:
        """(k, length, 1): `weight`, and 0 for everything but the image tokens."""
        if (key := ("weights", length, offset, dtype)) not in self._made:
            whole = self.weight.new_zeros(len(self.weight), length, dtype=dtype)
            whole[:, offset : offset + self.weight.shape[1]] = self.weight
            self._made[key] = whole[..., None]
        return self._made[key]

    def _beside(self, image: Tensor, length: int, offset: int, present: int) -> Tensor:
        """The image tokens' places with those of the other rows before or behind them."""
        fixed = present - image.shape[1]
        start = 0 if offset else length - fixed
        others = torch.arange(start, start + fixed, device=image.device).expand(len(image), -1)
        return torch.cat([others, image] if offset else [image, others], 1)

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
