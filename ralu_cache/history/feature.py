"""Features: what was cached for the tokens of one layout, and when that was computed: the one home of these facts.

A feature belongs to one `TokenLayout` object. Of each sample it knows the last pass in which all of its tokens were
computed; where tokens differ (some were computed alone, or a change of layout moved them), each has a stamp of its own.
A change of layout moves a feature by a `TokenMap`: KEPT tokens keep their bits, SPLIT ones take their parent's, MERGED
ones their children's mean; what was not computed for exactly this token is marked INHERITED and is read only by who
asks for it. Pure tensors; sigma 1 is noise, sigma 0 clean; steps count from 0 over the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ralu_cache.history.marks import Mark, moved_marks
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, TokenMap, describe, take

T = TypeVar("T")

Counts = tuple[tuple[int, int, int], ...]
"""Of each sample, how many tokens are EMPTY, INHERITED and VALID."""


class StaleFeature(ValueError):
    """A feature was asked for under another layout than its own."""

    def __init__(self, name: str, own: TokenLayout, asked: TokenLayout) -> None:
        super().__init__(
            f"feature {name!r} belongs to {describe(own)}, not to {describe(asked)}: equal shapes prove nothing; "
            "transfer the ledger to the new layout, or clear it"
        )


class Pass(NamedTuple):
    """When all tokens of a sample were computed: the step, and its level."""

    step: int
    sigma: float


NEVER = Pass(-1, math.nan)


@dataclass(frozen=True, eq=False)
class Stamps:
    """When each token was computed, and what that is worth.

    step: (B, n) int32, -1 where EMPTY. sigma: (B, n) float32, the level, nan where EMPTY. mark: (B, n) uint8, a `Mark`.
    """

    step: Tensor
    sigma: Tensor
    mark: Tensor

    @property
    def nbytes(self) -> int:
        return self.step.nbytes + self.sigma.nbytes + self.mark.nbytes

    def pick(self, places: tuple[Tensor, ...]) -> Stamps:
        """Those at an index, (rows,) or (rows, tokens)."""
        return Stamps(self.step[places], self.sigma[places], self.mark[places])

    def put(self, places: tuple[Tensor, ...], other: Stamps) -> Stamps:
        """With those of `other` at an index, (rows,) or (rows, tokens)."""
        both = ((self.step, other.step), (self.sigma, other.sigma), (self.mark, other.mark))
        return Stamps(*(ours.index_put(places, theirs) for ours, theirs in both))

    def move(self, layout: TokenLayout, tokens: TokenMap, changed: Tensor | None) -> Stamps:
        """Under another layout: see `moved_marks`; a MERGED token is as old as its oldest child."""
        source, count = tokens.source, layout.coarse_tokens
        if tokens.merges:
            ages = self.step.gather(1, tokens.children.flatten(1)).view_as(tokens.children)
            oldest = tokens.children.gather(2, ages.argmin(2, keepdim=True))[..., 0]
            source = torch.cat([oldest, source[:, count:]], 1)
        mark = moved_marks(self.mark, count, tokens, changed)
        return Stamps(self.step.gather(1, source), self.sigma.gather(1, source), mark)


@dataclass(frozen=True, eq=False)
class Feature:
    """What was computed for the tokens of one layout, and how far it holds. Nothing is changed in place.

    values: (B, n + extra, d): the layout's n tokens, then rows that ride along and no layout moves (reference
        tokens of an edited image). They carry no marks: they are as good as the sample that they belong to.
    layout: the layout that the values belong to; this very object, not one that looks like it.
    passes: of each sample, the last pass in which all of its tokens were computed; NEVER if there was none.
    apart: the stamps of single tokens, where passes do not tell all; None where every token of a sample is VALID and of
        its pass, or EMPTY without one.
    known: the marks counted, where `apart` is there and the host knows them.

    Raises ValueError for shapes that do not fit the layout.
    """

    values: Tensor
    layout: TokenLayout
    passes: tuple[Pass, ...]
    apart: Stamps | None = None
    known: Counts | None = None

    def __post_init__(self) -> None:
        n, batch, shape = self.layout.tokens, len(self.passes), self.values.shape
        if len(shape) != 3 or shape[1] < n or not shape[0] == batch == self.layout.batch:
            raise ValueError(
                f"expected values ({self.layout.batch}, {n} or more, d) of {describe(self.layout)}, got {tuple(shape)} "
                f"and {batch} passes"
            )
        if self.apart is not None and self.apart.mark.shape != (shape[0], n):
            raise ValueError(f"stamps must be {(shape[0], n)}, got {tuple(self.apart.mark.shape)}")

    @classmethod
    def fresh(cls, values: Tensor, layout: TokenLayout, step: int, sigma: float) -> Feature:
        """A feature computed just now for every token, at `step` and level `sigma`: all VALID."""
        return cls(values, layout, (Pass(step, sigma),) * layout.batch)

    @classmethod
    def blank(cls, like: Tensor, layout: TokenLayout) -> Feature:
        """Nothing computed yet: zeros of the shape (past the batch), dtype and device of `like`, all EMPTY."""
        return cls(like.new_zeros(layout.batch, *like.shape[1:]), layout, (NEVER,) * layout.batch)

    @property
    def extra(self) -> int:
        """Rows that ride along behind the layout's tokens."""
        return self.values.shape[1] - self.layout.tokens

    @property
    def nbytes(self) -> int:
        """Memory of the values, and of the stamps that were written out."""
        stamps: Stamps | None = vars(self).get("stamps", self.apart)
        return self.values.nbytes if stamps is None else self.values.nbytes + stamps.nbytes

    # ---- when, by token

    @cached_property
    def stamps(self) -> Stamps:
        """Those of all tokens, written out when somebody first asks for them."""
        if self.apart is not None:
            return self.apart
        columns = (
            self._column([taken.step for taken in self.passes], torch.int32),
            self._column([taken.sigma for taken in self.passes], torch.float32),
            self._column([Mark.EMPTY if taken.step < 0 else Mark.VALID for taken in self.passes], torch.uint8),
        )
        return Stamps(*(column[:, None].expand(-1, self.layout.tokens).contiguous() for column in columns))

    def _column(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """(B,) of numbers that the host knows; put together on the device, for a copy to it would wait."""
        device = self.values.device
        if all(value is values[0] for value in values):
            return torch.full((len(values),), values[0], dtype=dtype, device=device)
        return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])

    @property
    def step(self) -> Tensor:
        """See `Stamps`."""
        return self.stamps.step

    @property
    def sigma(self) -> Tensor:
        """See `Stamps`."""
        return self.stamps.sigma

    @property
    def mark(self) -> Tensor:
        """See `Stamps`."""
        return self.stamps.mark

    @property
    def at(self) -> float | None:
        """The level, where all tokens of all samples were computed at one and are VALID, and the host knows; or None"""
        first = self.passes[0]
        if self.apart is not None or first.step < 0 or self.passes.count(first) < len(self.passes):
            return None
        return first.sigma

    @cached_property
    def counts(self) -> Counts:
        """Of each sample, its marks counted; waits for the device where the host does not know them."""
        if (told := self._told()) is not None:
            return told
        counted = torch.stack([(self.mark == kind).sum(1) for kind in Mark], 1).tolist()
        return tuple((empty, inherited, valid) for empty, inherited, valid in counted)

    def _told(self) -> Counts | None:
        """`counts` as far as the host knows them without asking."""
        if self.apart is None:
            n = self.layout.tokens
            return tuple([(n, 0, 0) if taken[0] < 0 else (0, 0, n) for taken in self.passes])
        counted: Counts | None = vars(self).get("counts", self.known)
        return counted

    # ---- who may read it

    def readable(self, inherited: bool = False) -> Tensor:
        """(B,) bool: True where every token of the sample may be used; INHERITED ones count only with `inherited`."""
        if self.apart is None:
            return self._column([taken.step >= 0 for taken in self.passes], torch.bool)
        return (self.mark >= (Mark.INHERITED if inherited else Mark.VALID)).all(1)

    def level(self, inherited: bool = False) -> Tensor:
        """(B,) float32: the level at which the sample was computed; nan if unreadable, or not at one level only."""
        if self.apart is None:
            return self._column([taken.sigma for taken in self.passes], torch.float32)
        one = (self.sigma == self.sigma[:, :1]).all(1)
        return torch.where(one & self.readable(inherited), self.sigma[:, 0], torch.nan)

    def token_levels(self, inherited: bool = False) -> Tensor:
        """(B, n + extra) float32: the level at which each token was computed, nan where it may not be used.

        nan for the rows that ride along too: nothing is known of them but the newest value.
        """
        good = self.mark >= (Mark.INHERITED if inherited else Mark.VALID)
        levels = torch.where(good, self.sigma, torch.nan)
        return torch.cat([levels, levels.new_full((len(levels), self.extra), torch.nan)], 1)

    # ---- other features of it

    def move(self, layout: TokenLayout, tokens: TokenMap, changed: Tensor | None = None) -> Feature:
        """The feature under another layout of the same plane; `tokens`: the map from ours to it.

        `changed` is (B, n_new) bool: True where fresh noise was mixed into the token, which is INHERITED at best.
        """
        count = layout.coarse_tokens
        values = take(self.values, tokens.source)
        if tokens.merges:
            merged = (tokens.kind[:, :count] == Kind.MERGED)[..., None]
            means = _mean(take(self.values, tokens.children.flatten(1)), tokens.children)
            values = torch.cat([torch.where(merged, means, values[:, :count]), values[:, count:]], 1)
        if self.extra:
            values = torch.cat([values, self.values[:, self.layout.tokens :]], 1)
        return Feature(values, layout, self.passes, self.stamps.move(layout, tokens, changed))

    def pick(self, samples: Sequence[int], rows: Tensor, layout: TokenLayout) -> Feature:
        """Some samples alone, under a `layout` that has theirs; rows: (k,) int64, the numbers on the device."""
        passes, told = tuple(self.passes[sample] for sample in samples), self._told()
        if self.apart is None:
            return Feature(self.values[rows], layout, passes)
        known = None if told is None else tuple(told[sample] for sample in samples)
        return Feature(self.values[rows], layout, passes, self.apart.pick((rows,)), known)

    def put(self, samples: Sequence[int], rows: Tensor, other: Feature) -> Feature:
        """This feature with the `samples` replaced by those of `other`, which has them alone and in this order."""
        values, passes = self.values.index_copy(0, rows, other.values), _put(self.passes, samples, other.passes)
        if self.apart is None and other.apart is None:
            return Feature(values, self.layout, passes)
        ours, theirs = self._told(), other._told()
        known = None if ours is None or theirs is None else _put(ours, samples, theirs)
        return Feature(values, self.layout, passes, self.stamps.put((rows,), other.stamps), known)

    def put_tokens(
        self, rows: Tensor, tokens: Tensor, values: Tensor, stamps: Stamps, known: Counts | None = None
    ) -> Feature:
        """This feature with the tokens (k, m) int64 of the samples `rows` (k,) replaced; known: see the class."""
        places = rows[:, None], tokens
        whole = self.values.index_put(places, values)
        return replace(self, values=whole, apart=self.stamps.put(places, stamps), known=known)


def stamped(tokens: Tensor, step: int, sigma: float) -> Stamps:
    """Of tokens (k, m) that were computed just now."""
    return Stamps(
        torch.full_like(tokens, step, dtype=torch.int32),
        torch.full_like(tokens, sigma, dtype=torch.float32),
        torch.full_like(tokens, Mark.VALID, dtype=torch.uint8),
    )


def _put(ours: tuple[T, ...], samples: Sequence[int], theirs: tuple[T, ...]) -> tuple[T, ...]:
    """`ours` with those of the samples replaced."""
    new = dict(zip(samples, theirs, strict=True))
    return tuple(new.get(sample, held) for sample, held in enumerate(ours))


def _mean(values: Tensor, children: Tensor) -> Tensor:
    """Mean of four children, (B, 4c, d) -> (B, c, d), pairwise in float32: exact where the four are equal."""
    four = values.to(torch.promote_types(values.dtype, torch.float32)).unflatten(1, children.shape[1:])
    total = (four[:, :, 0] + four[:, :, 1]) + (four[:, :, 2] + four[:, :, 3])
    return (total / 4).to(values.dtype)
