"""Features: what was cached for the tokens of one layout, and per token how far it may still be used.

A feature belongs to one `TokenLayout` object and remembers, per token, when and on what it was computed. A change of
layout moves it by a `TokenMap`: KEPT tokens keep their bits, SPLIT ones take their parent's, MERGED ones their
children's mean; what was not computed for exactly this token is marked INHERITED and is read only by who asks for
it. Pure tensors; sigma 1 is noise, sigma 0 clean; steps count from 0 over the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ralu_cache.history.marks import Mark, moved_marks
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, TokenMap, describe, map_tokens, take

_TENSORS = ("values", "step", "sigma", "coarse", "epoch", "mark")


class StaleFeature(ValueError):
    """A feature was asked for under another layout than its own."""

    def __init__(self, name: str, own: TokenLayout, asked: TokenLayout) -> None:
        super().__init__(
            f"feature {name!r} belongs to {describe(own)}, not to {describe(asked)}: equal shapes prove nothing; "
            "transfer the ledger to the new layout, or clear it"
        )


def indices(rows: Tensor) -> Tensor:
    return rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows


def part_of(layout: TokenLayout, rows: Tensor) -> TokenLayout:
    """The layout of some samples alone."""
    if not len(rows := indices(rows)):
        raise ValueError(f"at least one of the {layout.batch} samples must be chosen, got none")
    return replace(layout, refined=layout.refined[rows], counted=layout.count)


def covers(rows: Tensor, batch: int) -> bool:
    """True if `rows` are all samples, in order."""
    rows = indices(rows)
    return len(rows) == batch and torch.equal(rows, torch.arange(batch, device=rows.device))


def fresh_tokens(values: Tensor, layout: TokenLayout, step: int, sigma: float, tokens: Tensor) -> dict[str, Tensor]:
    """As `Feature.tokens` gives it, of tokens (k, m) whose `values` (k, m, d) were computed just now."""
    return {
        "values": values,
        "step": torch.full_like(tokens, step, dtype=torch.int32),
        "sigma": torch.full_like(tokens, sigma, dtype=torch.float32),
        "coarse": tokens < layout.coarse_tokens,
        "epoch": torch.zeros_like(tokens, dtype=torch.int32),
        "mark": torch.full_like(tokens, Mark.VALID, dtype=torch.uint8),
    }


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
    at: the level, where all tokens of all samples were computed at one and are VALID, and the host knows; else None.

    Raises ValueError for shapes that do not fit the layout.
    """

    values: Tensor
    layout: TokenLayout
    step: Tensor
    sigma: Tensor
    coarse: Tensor
    epoch: Tensor
    mark: Tensor
    at: float | None = None

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
        key = "feature", mark, device
        if key not in layout.made:  # what all features of a layout have alike; nothing is changed in place
            coarse = torch.arange(layout.tokens, device=device) < layout.coarse_tokens
            layout.made[key] = (
                coarse.expand(shape),
                torch.zeros(shape, dtype=torch.int32, device=device),
                torch.full(shape, mark, dtype=torch.uint8, device=device),
            )
        coarse, epoch, marks = layout.made[key]
        return cls(
            values,
            layout,
            step=torch.full(shape, step, dtype=torch.int32, device=device),
            sigma=torch.full(shape, sigma, dtype=torch.float32, device=device),
            coarse=coarse,
            epoch=epoch,
            mark=marks,
            at=sigma if mark == Mark.VALID else None,
        )

    @property
    def extra(self) -> int:
        """Rows that ride along behind the layout's tokens."""
        return self.values.shape[1] - self.layout.tokens

    @cached_property
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

    def token_levels(self, inherited: bool = False) -> Tensor:
        """(B, n + extra) float32: the level at which each token was computed, nan where it may not be used.

        nan for the rows that ride along too: nothing is known of them but the newest value.
        """
        good = self.mark >= (Mark.INHERITED if inherited else Mark.VALID)
        levels = torch.where(good, self.sigma, torch.nan)
        return torch.cat([levels, levels.new_full((len(levels), self.extra), torch.nan)], 1)

    def transfer(self, layout: TokenLayout, changed: Tensor | None = None) -> Feature:
        """The feature under another layout of the same plane.

        `changed` is (B, n_new) bool: True where fresh noise was mixed into the token; its epoch rises, and it is
        INHERITED at best. KEPT tokens keep bits and mark, SPLIT and MERGED ones are INHERITED, EMPTY stays EMPTY
        (one EMPTY child suffices). A MERGED token is as old as its oldest child. Raises ValueError for another plane.
        """
        return self.move(layout, map_tokens(self.layout, layout), changed)

    def move(self, layout: TokenLayout, tokens: TokenMap, changed: Tensor | None) -> Feature:
        source, count = tokens.source, layout.coarse_tokens
        mark = moved_marks(self.mark, count, tokens, changed)
        values, epoch = (take(t, source) for t in (self.values, self.epoch))
        if tokens.merges:
            children = tokens.children.flatten(1)
            ages = self.step.gather(1, children).view_as(tokens.children)
            oldest = tokens.children.gather(2, ages.argmin(2, keepdim=True))[..., 0]
            source = torch.cat([oldest, source[:, count:]], 1)
            merged = (tokens.kind[:, :count] == Kind.MERGED)[..., None]
            means = _mean(take(self.values, children), tokens.children)
            values = torch.cat([torch.where(merged, means, values[:, :count]), values[:, count:]], 1)
            epoch[:, :count] = self.epoch.gather(1, children).view_as(ages).amax(2)
        if changed is not None:
            epoch = epoch + changed.int()
        return Feature(
            values if not self.extra else torch.cat([values, self.values[:, self.layout.tokens :]], 1),
            layout,
            step=self.step.gather(1, source),
            sigma=self.sigma.gather(1, source),
            coarse=self.coarse.gather(1, source),
            epoch=epoch,
            mark=mark,
        )

    def select(self, rows: Tensor) -> Feature:
        """Some samples, by (k,) indices or a (B,) mask, under a layout of their own. Raises ValueError for none."""
        rows = indices(rows)
        return Feature(layout=part_of(self.layout, rows), **self.samples(rows))

    def put(self, rows: Tensor, other: Feature) -> Feature:
        """This feature with the samples `rows`, (k,) indices or a (B,) mask, replaced by those of `other`.

        Raises StaleFeature unless `other` covers the plane as those samples of ours do, cell for cell.
        """
        rows = indices(rows)
        if other.layout.patch != self.layout.patch or not torch.equal(other.layout.refined, self.layout.refined[rows]):
            raise StaleFeature("put", other.layout, self.layout)
        return self.put_samples(rows, other.samples())

    def samples(self, rows: Tensor | None = None) -> dict[str, Any]:
        """All that is held of the samples `rows` (k,), all by default."""
        return {name: getattr(self, name) if rows is None else getattr(self, name)[rows] for name in _TENSORS}

    def put_samples(self, rows: Tensor, held: dict[str, Tensor]) -> Feature:
        """This feature with what `samples` gave of another one, of the same layout, in the places of `rows` (k,)."""
        changed = {name: getattr(self, name).index_copy(0, rows, held[name]) for name in _TENSORS}
        return replace(self, at=None, **changed)

    def tokens(self, rows: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """All that is held of some tokens (k, m) int64 of the samples `rows` (k,)."""
        return {name: getattr(self, name)[rows[:, None], tokens] for name in _TENSORS}

    def put_tokens(self, rows: Tensor, tokens: Tensor, held: dict[str, Tensor]) -> Feature:
        """This feature with what `tokens` gave of another one, of the same layout, in the same places."""
        places = rows[:, None], tokens
        changed = {name: getattr(self, name).index_put(places, held[name]) for name in _TENSORS}
        return replace(self, at=None, **changed)

    def invalidate(self, rows: Tensor | None = None, tokens: Tensor | None = None) -> Feature:
        """EMPTY for the samples `rows` (all by default), or there only for the `tokens`, (B, n) bool."""
        void = torch.ones_like(self.mark, dtype=torch.bool) if tokens is None else tokens
        if rows is not None:
            chosen = torch.zeros(len(void), 1, dtype=torch.bool, device=void.device)
            void = void & chosen.index_fill(0, indices(rows), True)
        return replace(
            self,
            at=None,
            step=self.step.masked_fill(void, -1),
            sigma=self.sigma.masked_fill(void, torch.nan),
            mark=self.mark.masked_fill(void, Mark.EMPTY),
        )


def _mean(values: Tensor, children: Tensor) -> Tensor:
    """Mean of four children, (B, 4c, d) -> (B, c, d), pairwise in float32: exact where the four are equal."""
    four = values.to(torch.promote_types(values.dtype, torch.float32)).unflatten(1, children.shape[1:])
    total = (four[:, :, 0] + four[:, :, 1]) + (four[:, :, 2] + four[:, :, 3])
    return (total / 4).to(values.dtype)
