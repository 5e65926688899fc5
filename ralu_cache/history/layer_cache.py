"""What every layer's attention and MLP gave: one branch's cache, and which of its tokens a call computes afresh.

Pure tensors. A *layer* is a block; a *site* is a submodule of one whose output is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ralu_cache.history.feature import StaleFeature
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import TokenMap, put_, take


@dataclass(frozen=True, eq=False)
class Fresh:
    """Tokens that run through the MLPs of a call, those that matter most first.

    order: (k, m) int64, of each of the call's samples. counts: how many of the first of them each layer takes, None
    for all of them in every layer.

    Raises ValueError for another shape or dtype, or a count below 0 or above m.
    """

    order: Tensor
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.order.ndim != 2 or self.order.dtype != torch.int64:
            raise ValueError(f"order must be (k, m) int64, got {tuple(self.order.shape)} {self.order.dtype}")
        if self.counts is not None and not all(0 <= count <= self.order.shape[1] for count in self.counts):
            raise ValueError(f"counts must be from 0 to {self.order.shape[1]}, got {self.counts}")

    def at(self, layer: int) -> Tensor | None:
        """(k, count) int64: the tokens of a layer, None for none. Raises ValueError for a layer without a count."""
        if self.counts is None:
            chosen = self.order
        elif layer < len(self.counts):
            chosen = self.order[:, : self.counts[layer]]
        else:
            raise ValueError(f"counts must be given for every layer, got {len(self.counts)} for layer {layer}")
        return chosen if chosen.shape[1] else None


class LayerCache:
    """The outputs of every site of one branch, the newest first; per sample, as samples decide for themselves.

    A site's rows may hold the image tokens at some offset, text before them and reference tokens behind. When they were
    computed, and how far an image token's entry holds, is what the ledger says of its residual: both are computed in
    the same pass.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self._outputs: list[dict[str, Tensor]] = []  # by pass, then by site
        self._offsets: dict[str, int | None] = {}
        self._measures: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """How many passes are kept."""
        return len(self._outputs)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self._offsets)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        groups = (*self._outputs, *self._measures.values())
        return sum(tensor.nbytes for group in groups for tensor in group.values())

    def check(self, layout: TokenLayout) -> None:
        """Raises StaleFeature under another layout object than the cache's own."""
        if layout is not self.layout:
            raise StaleFeature("layer outputs", self.layout, layout)

    def clear(self) -> None:
        """Forget everything."""
        for held in (self._outputs, self._offsets, self._measures):
            held.clear()

    def begin(self, samples: Tensor | None = None, keep: int = 1) -> None:
        """A pass comes, of all samples or of `samples` (k,) int64.

        Their `keep - 1` earlier passes move one place back; other samples' stay. Raises ValueError for keep < 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be 1 or more, got {keep}")
        if samples is None:  # what nobody needs any more is freed before the pass makes new
            del self._outputs[keep - 1 :]
            self._outputs.insert(0, {})
            return
        if len(self) < keep:
            self._outputs.append({})
        for slot in range(len(self) - 1, 0, -1):
            for site, newer in self._outputs[slot - 1].items():
                _write(self._outputs[slot], site, newer[samples], samples, self.layout.batch)

    def store(self, site: str, values: Tensor, offset: int | None, samples: Tensor | None = None) -> None:
        """Keep what a site gave in the pass that began: (B, L, d), or (k, L, d) of `samples`.

        offset: where the image tokens begin, None if there are none. Tensors of a whole batch are kept as they are,
        and overwritten later.
        """
        self._offsets[site] = offset
        _write(self._outputs[0], site, values, samples, self.layout.batch)

    def newest(self, site: str, samples: Tensor | None = None) -> Tensor:
        """(B, L, d), or (k, L, d) of `samples`: what a site gave. Raises ValueError if it gave nothing yet."""
        values = self._outputs[0].get(site) if self._outputs else None
        if values is None:
            raise ValueError(f"nothing was recorded at {site!r}: the layer must run before its output can stand in")
        return values if samples is None else values[samples]

    def overwrite(self, site: str, index: Tensor, values: Tensor, samples: Tensor | None = None) -> Tensor:
        """Put rows (k, m, d) in their places `index` (k, m); returns all rows (k, L, d) of the samples."""
        rows = put_(self.newest(site, samples), index, values)
        if samples is not None:
            self._outputs[0][site][samples] = rows
        return rows

    def history(
        self, site: str, levels: Sequence[Tensor], samples: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """(level (k,), values (k, L, d)) of the passes, newest first, as `extrapolate` wants it.

        levels: (B,) of each pass, nan where none was, from the ledger. Raises ValueError if the site gave nothing yet.
        """
        self.newest(site, samples)
        pairs = [(level, held[site]) for level, held in zip(levels, self._outputs, strict=True) if site in held]
        return pairs if samples is None else [(level[samples], values[samples]) for level, values in pairs]

    def keep_measure(self, name: str, site: str, values: Tensor, samples: Tensor | None = None) -> None:
        """A measure (B, n) or (k, n) of the image tokens, as one attention layer sees them."""
        _write(self._measures.setdefault(name, {}), site, values, samples, self.layout.batch)

    def measure(self, name: str) -> Tensor:
        """(B, n) float32: a measure's mean over the attention layers. Raises ValueError for one that was not kept."""
        if name not in self._measures:
            raise ValueError(f"token measure {name!r} is not kept; kept are {', '.join(self._measures) or 'none'}")
        return torch.stack(list(self._measures[name].values())).mean(0)

    def pick(self, rows: Tensor, layout: TokenLayout) -> LayerCache:
        """What is held of the samples `rows` (k,) int64, under a `layout` that has theirs."""
        part = LayerCache(layout)
        part._outputs = [{site: values[rows] for site, values in held.items()} for held in self._outputs]
        part._offsets = dict(self._offsets)
        part._measures = {
            name: {site: values[rows] for site, values in sites.items()} for name, sites in self._measures.items()
        }
        return part

    def move(self, layout: TokenLayout, tokens: TokenMap) -> None:
        """To another layout: a SPLIT token gets its parent's rows, a MERGED one its first child's; text stays."""
        count = self.layout.tokens
        for held in self._outputs:
            for site, values in held.items():
                offset = self._offsets[site]
                if offset is not None:
                    before, image, after = values.split([offset, count, values.shape[1] - offset - count], 1)
                    held[site] = torch.cat([before, take(image, tokens.source), after], 1)
        for sites in self._measures.values():
            for site, values in sites.items():
                sites[site] = take(values, tokens.source)
        self.layout = layout


def _write(held: dict[str, Tensor], name: str, values: Tensor, samples: Tensor | None, batch: int) -> None:
    """Put in what is of all samples, or of `samples` alone; the others stay, or are zero at first."""
    if samples is None:
        held[name] = values
        return
    if name not in held:
        held[name] = values.new_zeros(batch, *values.shape[1:])
    held[name][samples] = values
