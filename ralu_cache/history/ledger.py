"""The ledger: the cached features of one branch by name, read under the layout that they belong to and no other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ralu_cache.history.feature import Feature, Mark, StaleFeature, covers, fresh_tokens, indices, part_of
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import TokenMap, map_tokens


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
        names = (name, *(f"{name}/{k}" for k in range(1, keep)))
        if rows is None or covers(rows, layout.batch):
            newest: Feature | None = Feature.fresh(values, layout, step, sigma)
            for key in names:
                if newest is not None:
                    self._features[key], newest = newest, self.get(key, layout)
            return
        rows = indices(rows)
        held = Feature.fresh(values, part_of(layout, rows), step, sigma).samples()
        for key in names:
            older = self.get(key, layout)
            self._features[key] = (older or Feature.blank(values, layout)).put_samples(rows, held)
            if older is None:
                break
            held = older.samples(rows)

    def record_tokens(
        self, name: str, values: Tensor, layout: TokenLayout, step: int, sigma: float,
        rows: Tensor, tokens: Tensor, keep: int = 1,
    ) -> None:  # fmt: skip
        """As `record`, for some tokens alone: `values` (k, m, d) of the tokens (k, m) of the samples `rows` (k,).

        These tokens' earlier values move one place back, all others stay. Raises StaleFeature as `record` does, and
        ValueError if nothing was recorded before.
        """
        newest = self.get(name, layout)
        if newest is None:
            raise ValueError(f"feature {name!r} must be recorded for all tokens before it is for some")
        held = fresh_tokens(values, layout, step, sigma, tokens)
        for key in (name, *(f"{name}/{k}" for k in range(1, keep))):
            older = self.get(key, layout)
            if older is None:
                older = Feature.blank(newest.values, layout)
            self._features[key] = older.put_tokens(rows, tokens, held)
            held = older.tokens(rows, tokens)

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

    def history(
        self, name: str, layout: TokenLayout, inherited: bool = False, by_token: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """(level (B,), values (B, n + extra, d)) of a recorded feature, newest first; nan where unreadable.

        by_token: levels (B, n + extra), one for each token. Raises StaleFeature under another layout.
        """
        found = []
        feature = self.get(name, layout)
        while feature is not None:
            level = feature.token_levels if by_token else feature.level
            found.append((level(inherited), feature.values))
            feature = self.get(f"{name}/{len(found)}", layout)
        return found

    def uniform_history(self, name: str, layout: TokenLayout, most: int) -> list[tuple[float, Tensor]] | None:
        """As `history`, at most so many, where the host knows one level for all tokens of each; else None."""
        found: list[tuple[float, Tensor]] = []
        feature = self.get(name, layout)
        while feature is not None and len(found) < most:
            if feature.at is None:
                return None
            found.append((feature.at, feature.values))
            feature = self.get(f"{name}/{len(found)}", layout)
        return found or None

    def transfer(self, layout: TokenLayout, changed: Tensor | None = None) -> None:
        """Move every feature to another layout of the plane (see `Feature.transfer`); the old ones are dropped."""
        maps: dict[int, TokenMap] = {}
        moved = {}
        for name, feature in self._features.items():
            if id(feature.layout) not in maps:
                maps[id(feature.layout)] = map_tokens(feature.layout, layout)
            moved[name] = feature.move(layout, maps[id(feature.layout)], changed)
        self._features = moved

    def pick(self, rows: Tensor, layout: TokenLayout) -> Ledger:
        """What is held of the samples `rows` (k,) int64, under a `layout` that has theirs."""
        part = Ledger()
        part._features = {name: Feature(layout=layout, **held.samples(rows)) for name, held in self._features.items()}
        return part

    def invalidate(self, name: str | None = None, rows: Tensor | None = None, tokens: Tensor | None = None) -> None:
        """Mark EMPTY: one feature or all, some samples or all, some tokens (B, n) or all."""
        for key in self._features if name is None else (name,):
            self._features[key] = self._features[key].invalidate(rows, tokens)

    def drop(self, name: str) -> None:
        """Forget one feature, if there is one of that name."""
        self._features.pop(name, None)

    def clear(self) -> None:
        """Forget everything."""
        self._features.clear()

    def counts(self, name: str) -> Tensor:
        """(B, 3) int64: how many tokens of each sample are EMPTY, INHERITED and VALID. Raises KeyError for no such."""
        mark = self._features[name].mark
        return torch.stack([(mark == kind).sum(1) for kind in Mark], 1)
