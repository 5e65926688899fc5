"""The ledger: for every cached feature and token, how far it may still be used after the token layout changed.

A feature belongs to one `TokenLayout` object and remembers, per token, when and on what it was computed. A change of
layout moves it by a `TokenMap`: KEPT tokens keep their bits, SPLIT ones take their parent's, MERGED ones their
children's mean; what was not computed for exactly this token is marked INHERITED and is read only by who asks for
it. Pure tensors; sigma 1 is noise, sigma 0 clean; steps count from 0 over the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from ralu_cache.canvas import TokenLayout, replicate

_TENSORS = ("values", "step", "sigma", "coarse", "epoch", "mark")


class StaleFeature(ValueError):
    """A feature was asked for under another layout than its own."""

    def __init__(self, name: str, own: TokenLayout, asked: TokenLayout) -> None:
        super().__init__(
            f"feature {name!r} belongs to {describe(own)}, not to {describe(asked)}: equal shapes prove nothing; "
            "transfer the ledger to the new layout, or clear it"
        )


class Kind(IntEnum):
    """What a token of the new layout was in the old one."""

    KEPT = 0  # the same token
    SPLIT = 1  # a part of a coarse token
    MERGED = 2  # four fine tokens


class Mark(IntEnum):
    """How far a token's feature may be used."""

    EMPTY = 0  # never
    INHERITED = 1  # only by who asks for it: it came from a parent or from children, or the token's noise changed
    VALID = 2  # computed for this very token


def describe(layout: TokenLayout) -> str:
    """A layout in an error message: sizes, and the identity that tells it from others of the same sizes."""
    rows, columns = layout.cells
    counts = f"{layout.coarse_index.shape[1]} coarse + {layout.fine_index.shape[1]} fine tokens"
    return f"layout {id(layout):#x} ({layout.batch} x {counts} on {rows} x {columns} cells)"


def token_at(layout: TokenLayout) -> Tensor:
    """(B, 4 Y X) int64: the token that covers each position of the fine grid, raster order."""
    batch, coarse = layout.batch, layout.coarse_index.shape[1]
    numbers = torch.arange(layout.tokens, device=layout.refined.device).expand(batch, -1)
    cells = numbers.new_zeros(batch, layout.refined[0].numel()).scatter(1, layout.coarse_index, numbers[:, :coarse])
    fine = numbers.new_zeros(batch, layout.fine_tokens[0].numel()).scatter(1, layout.fine_index, numbers[:, coarse:])
    return torch.where(layout.fine_tokens.flatten(1), fine, replicate(cells.view(batch, *layout.cells)).flatten(1))


def plane(values: Tensor, layout: TokenLayout) -> Tensor:
    """Token values (B, n, d) on the fine token grid (B, d, 2Y, 2X); coarse tokens are replicated."""
    if values.shape[:2] != (layout.batch, layout.tokens):
        raise ValueError(f"expected ({layout.batch}, {layout.tokens}, d) for {describe(layout)}, got {values.shape}")
    return _take(values, token_at(layout)).transpose(1, 2).unflatten(2, layout.fine_grid)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Where each token of a new layout comes from in an old one.

    source: (B, n_new) int64, a token of the old layout; of MERGED tokens the upper left child.
    children: (B, coarse tokens of the new layout, 4) int64: the old tokens that cover each new coarse token's cell,
        raster order; four different ones where MERGED, four times `source` where KEPT.
    kind: (B, n_new) uint8, a `Kind`.
    """

    source: Tensor
    children: Tensor
    kind: Tensor

    @cached_property
    def merges(self) -> bool:
        """True if any token is MERGED; stages that only refine never merge."""
        return bool((self.kind == Kind.MERGED).any())


def map_tokens(old: TokenLayout, new: TokenLayout) -> TokenMap:
    """For each token of `new`, the token or tokens of `old` that cover the same place.

    Raises ValueError unless both have the same batch, cells and patch.
    """
    if (old.batch, old.cells, old.patch) != (new.batch, new.cells, new.patch):
        raise ValueError(
            f"layouts of one plane are needed, got batch {old.batch}, cells {old.cells}, patch {old.patch} and "
            f"batch {new.batch}, cells {new.cells}, patch {new.patch}"
        )
    columns = old.cells[1]
    covering, refined = token_at(old), old.refined.flatten(1)
    corner = new.coarse_index // columns * (4 * columns) + new.coarse_index % columns * 2
    offsets = torch.tensor([0, 1, 2 * columns, 2 * columns + 1], device=corner.device)
    places = (corner[..., None] + offsets).flatten(1)
    children = covering.gather(1, places).view(new.batch, -1, 4)
    source = torch.cat([children[..., 0], covering.gather(1, new.fine_index)], 1)
    merged = refined.gather(1, new.coarse_index).to(torch.uint8) * Kind.MERGED
    split = (~old.fine_tokens.flatten(1).gather(1, new.fine_index)).to(torch.uint8) * Kind.SPLIT
    return TokenMap(source, children, torch.cat([merged, split], 1))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of each sample: (B, n, d) and (B, m) -> (B, m, d); (B, n) -> (B, m)."""
    if values.ndim == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _indices(rows: Tensor) -> Tensor:
    return rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows


def _part(layout: TokenLayout, rows: Tensor) -> TokenLayout:
    """The layout of some samples alone."""
    if not len(rows := _indices(rows)):
        raise ValueError(f"at least one of the {layout.batch} samples must be chosen, got none")
    return TokenLayout(layout.refined[rows], layout.patch)


def _covers(rows: Tensor, batch: int) -> bool:
    """True if `rows` are all samples, in order."""
    rows = _indices(rows)
    return len(rows) == batch and torch.equal(rows, torch.arange(batch, device=rows.device))


@dataclass(frozen=True, eq=False)
class Feature:
    """What was computed for the tokens of one layout, and how far it holds. Nothing is changed in place.

    values: (B, n + extra, d): the layout's n tokens, then rows that ride along and no layout moves (reference
        tokens of an edited image). They carry no marks: they are as good as the sample that they belong to.
    layout: the layout that the values belong to; this very object, not one that looks like it.
    step: (B, n) int32, when the value was computed; -1 where EMPTY.
    sigma: (B, n) float32, at which level; nan where EMPTY.
    coarse: (B, n) bool, the resolution of the token that it was computed for.
    epoch: (B, n) int32, raised whenever fresh noise was mixed into the token since.
    mark: (B, n) uint8, a `Mark`.

    Raises ValueError for shapes that do not fit the layout.
    """

    values: Tensor
    layout: TokenLayout
    step: Tensor
    sigma: Tensor
    coarse: Tensor
    epoch: Tensor
    mark: Tensor

    def __post_init__(self) -> None:
        n, shape = self.layout.tokens, tuple(self.values.shape)
        if len(shape) != 3 or shape[0] != self.layout.batch or shape[1] < n:
            raise ValueError(
                f"expected values ({self.layout.batch}, {n} or more, d) of {describe(self.layout)}, got {shape}"
            )
        for name in _TENSORS[1:]:
            if tuple(getattr(self, name).shape) != (shape[0], n):
                raise ValueError(f"{name} must be {(shape[0], n)}, got {tuple(getattr(self, name).shape)}")

    @classmethod
    def fresh(cls, values: Tensor, layout: TokenLayout, step: int, sigma: float) -> Feature:
        """A feature computed just now for every token, at `step` and level `sigma`: all VALID."""
        return cls._uniform(values, layout, step, sigma, Mark.VALID)

    @classmethod
    def blank(cls, like: Tensor, layout: TokenLayout) -> Feature:
        """Nothing computed yet: zeros of the shape (past the batch), dtype and device of `like`, all EMPTY."""
        return cls._uniform(like.new_zeros(layout.batch, *like.shape[1:]), layout, -1, float("nan"), Mark.EMPTY)

    @classmethod
    def _uniform(cls, values: Tensor, layout: TokenLayout, step: int, sigma: float, mark: Mark) -> Feature:
        shape, device = (layout.batch, layout.tokens), values.device
        coarse = torch.arange(layout.tokens, device=device) < layout.coarse_index.shape[1]
        return cls(
            values,
            layout,
            step=torch.full(shape, step, dtype=torch.int32, device=device),
            sigma=torch.full(shape, sigma, dtype=torch.float32, device=device),
            coarse=coarse.expand(shape),
            epoch=torch.zeros(shape, dtype=torch.int32, device=device),
            mark=torch.full(shape, mark, dtype=torch.uint8, device=device),
        )

    @property
    def extra(self) -> int:
        """Rows that ride along behind the layout's tokens."""
        return self.values.shape[1] - self.layout.tokens

    @property
    def nbytes(self) -> int:
        """Memory of the values and of what is known of them."""
        return sum(getattr(self, name).nbytes for name in _TENSORS)

    def readable(self, inherited: bool = False, oldest: int | None = None) -> Tensor:
        """(B,) bool: True where every token of the sample may be used.

        INHERITED tokens count only with `inherited`; with `oldest`, tokens computed before that step do not count.
        """
        good = self.mark >= (Mark.INHERITED if inherited else Mark.VALID)
        if oldest is not None:
            good = good & (self.step >= oldest)
        return good.all(1)

    def level(self, inherited: bool = False) -> Tensor:
        """(B,) float32: the level at which the sample was computed; nan if unreadable, or not at one level only."""
        one = (self.sigma == self.sigma[:, :1]).all(1)
        return torch.where(one & self.readable(inherited), self.sigma[:, 0], torch.nan)

    def transfer(self, layout: TokenLayout, changed: Tensor | None = None) -> Feature:
        """The feature under another layout of the same plane.

        `changed` is (B, n_new) bool: True where fresh noise was mixed into the token; its epoch rises, and it is
        INHERITED at best. KEPT tokens keep bits and mark, SPLIT and MERGED ones are INHERITED, EMPTY stays EMPTY
        (one EMPTY child suffices). A MERGED token is as old as its oldest child. Raises ValueError for another plane.
        """
        return self._move(layout, map_tokens(self.layout, layout), changed)

    def _move(self, layout: TokenLayout, tokens: TokenMap, changed: Tensor | None) -> Feature:
        source, count = tokens.source, layout.coarse_index.shape[1]
        values, mark, epoch = (_take(t, source) for t in (self.values, self.mark, self.epoch))
        if tokens.merges:
            children = tokens.children.flatten(1)
            ages = self.step.gather(1, children).view_as(tokens.children)
            oldest = tokens.children.gather(2, ages.argmin(2, keepdim=True))[..., 0]
            source = torch.cat([oldest, source[:, count:]], 1)
            merged = (tokens.kind[:, :count] == Kind.MERGED)[..., None]
            means = _mean(_take(self.values, children), tokens.children)
            values = torch.cat([torch.where(merged, means, values[:, :count]), values[:, count:]], 1)
            mark[:, :count] = self.mark.gather(1, children).view_as(ages).amin(2)
            epoch[:, :count] = self.epoch.gather(1, children).view_as(ages).amax(2)
        weaker = tokens.kind != Kind.KEPT
        if changed is not None:
            if changed.dtype != torch.bool or changed.shape != mark.shape:
                raise ValueError(
                    f"changed must be {tuple(mark.shape)} bool, got {tuple(changed.shape)} {changed.dtype}"
                )
            weaker, epoch = weaker | changed, epoch + changed.int()
        return Feature(
            values if not self.extra else torch.cat([values, self.values[:, self.layout.tokens :]], 1),
            layout,
            step=self.step.gather(1, source),
            sigma=self.sigma.gather(1, source),
            coarse=self.coarse.gather(1, source),
            epoch=epoch,
            mark=torch.where(weaker, mark.clamp(max=Mark.INHERITED), mark),
        )

    def select(self, rows: Tensor) -> Feature:
        """Some samples, by (k,) indices or a (B,) mask, under a layout of their own. Raises ValueError for none."""
        rows = _indices(rows)
        return Feature(layout=_part(self.layout, rows), **{name: getattr(self, name)[rows] for name in _TENSORS})

    def put(self, rows: Tensor, other: Feature) -> Feature:
        """This feature with the samples `rows`, (k,) indices or a (B,) mask, replaced by those of `other`.

        Raises StaleFeature unless `other` covers the plane as those samples of ours do, cell for cell.
        """
        rows = _indices(rows)
        if other.layout.patch != self.layout.patch or not torch.equal(other.layout.refined, self.layout.refined[rows]):
            raise StaleFeature("put", other.layout, self.layout)
        return replace(
            self, **{name: getattr(self, name).index_copy(0, rows, getattr(other, name)) for name in _TENSORS}
        )

    def invalidate(self, rows: Tensor | None = None, tokens: Tensor | None = None) -> Feature:
        """EMPTY for the samples `rows` (all by default), or there only for the `tokens`, (B, n) bool."""
        void = torch.ones_like(self.mark, dtype=torch.bool) if tokens is None else tokens
        if rows is not None:
            chosen = torch.zeros(len(void), 1, dtype=torch.bool, device=void.device)
            void = void & chosen.index_fill(0, _indices(rows), True)
        return replace(
            self,
            step=self.step.masked_fill(void, -1),
            sigma=self.sigma.masked_fill(void, torch.nan),
            mark=self.mark.masked_fill(void, Mark.EMPTY),
        )


def _mean(values: Tensor, children: Tensor) -> Tensor:
    """Mean of four children, (B, 4c, d) -> (B, c, d), pairwise in float32: exact where the four are equal."""
    four = values.to(torch.promote_types(values.dtype, torch.float32)).unflatten(1, children.shape[1:])
    total = (four[:, :, 0] + four[:, :, 1]) + (four[:, :, 2] + four[:, :, 3])
    return (total / 4).to(values.dtype)


@dataclass(frozen=True, eq=False)
class Reading:
    """values: (B, n + extra, d), not copied; readable: (B,) bool, the samples for which they may be used."""

    values: Tensor
    readable: Tensor


class Ledger:
    """The features of one branch, that is of the calls at the same place within every step, by name.

    A feature that was recorded with a history is kept newest first under "name", "name/1", "name/2", ...
    The ledger holds references: who stores a tensor must not write to it any more.
    """

    def __init__(self) -> None:
        self._features: dict[str, Feature] = {}

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, name: str) -> bool:
        return name in self._features

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._features)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(feature.nbytes for feature in self._features.values())

    def store(self, name: str, feature: Feature) -> None:
        """Keep `feature`, in place of an earlier one of that name."""
        self._features[name] = feature

    def record(
        self, name: str, values: Tensor, layout: TokenLayout, step: int, sigma: float,
        rows: Tensor | None = None, keep: int = 1,
    ) -> None:  # fmt: skip
        """Keep what was computed at `step`: `values` (B, n + extra, d), or (k, ...) of the samples `rows` alone.

        `layout` is that of the whole batch. Each of these samples' `keep - 1` earlier values move one place back; the
        other samples' histories stay as they are. Raises StaleFeature if what is stored has another layout, ValueError
        for keep < 1, no rows, or shapes that do not fit.
        """
        if keep < 1:
            raise ValueError(f"keep must be 1 or more, got {keep}")
        part = layout if rows is None or _covers(rows, layout.batch) else _part(layout, rows)
        newest = Feature.fresh(values, part, step, sigma)
        for key in (name, *(f"{name}/{k}" for k in range(1, keep))):
            older = self.get(key, layout)
            if rows is None or part is layout:
                self._features[key] = newest
            else:
                self._features[key] = (older or Feature.blank(values, layout)).put(rows, newest)
            if older is None:
                break
            newest = older if rows is None or part is layout else older.select(rows)

    def get(self, name: str, layout: TokenLayout) -> Feature | None:
        """The feature itself, or None; for reports and tests. Raises StaleFeature under another layout."""
        feature = self._features.get(name)
        if feature is not None and feature.layout is not layout:
            raise StaleFeature(name, feature.layout, layout)
        return feature

    def read(
        self, name: str, layout: TokenLayout, inherited: bool = False, oldest: int | None = None
    ) -> Reading | None:
        """A feature's values and for which samples they may be used; None if there is none of that name.

        INHERITED tokens may be used only with `inherited`, EMPTY ones never, those computed before step `oldest` not.
        Raises StaleFeature under another layout object than its own.
        """
        feature = self.get(name, layout)
        return None if feature is None else Reading(feature.values, feature.readable(inherited, oldest))

    def history(self, name: str, layout: TokenLayout, inherited: bool = False) -> list[tuple[Tensor, Tensor]]:
        """(level (B,), values (B, n + extra, d)) of a recorded feature, newest first; nan where unreadable.

        Raises StaleFeature under another layout.
        """
        found = []
        feature = self.get(name, layout)
        while feature is not None:
            found.append((feature.level(inherited), feature.values))
            feature = self.get(f"{name}/{len(found)}", layout)
        return found

    def transfer(self, layout: TokenLayout, changed: Tensor | None = None) -> None:
        """Move every feature to another layout of the plane (see `Feature.transfer`); the old ones are dropped."""
        maps: dict[int, TokenMap] = {}
        moved = {}
        for name, feature in self._features.items():
            if id(feature.layout) not in maps:
                maps[id(feature.layout)] = map_tokens(feature.layout, layout)
            moved[name] = feature._move(layout, maps[id(feature.layout)], changed)
        self._features = moved

    def invalidate(self, name: str | None = None, rows: Tensor | None = None, tokens: Tensor | None = None) -> None:
        """Mark EMPTY: one feature or all, some samples or all, some tokens (B, n) or all."""
        for key in self._features if name is None else (name,):
            self._features[key] = self._features[key].invalidate(rows, tokens)

    def clear(self) -> None:
        """Forget everything."""
        self._features.clear()

    def counts(self, name: str) -> Tensor:
        """(B, 3) int64: how many tokens of each sample are EMPTY, INHERITED and VALID. Raises KeyError for no such."""
        mark = self._features[name].mark
        return torch.stack([(mark == kind).sum(1) for kind in Mark], 1)
