"""The ledger: the cached features of one branch by name, read under the layout that they belong to and no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ralu_cache.history.feature import Counts, Feature, StaleFeature, stamped
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import TokenMap


@dataclass(frozen=True, eq=False)
class Reading:
    """values: (B, n + extra, d), not copied; readable: (B,) bool, the samples for which they may be used."""

    values: Tensor
    readable: Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """Some samples of a batch: their numbers on the host, and the same on the device, (k,) int64."""

    numbers: tuple[int, ...]
    rows: Tensor

    @classmethod
    def of(cls, numbers: Sequence[int], device: torch.device) -> Samples:
        """Put together on the device, for a copy to it would wait."""
        places = torch.arange(max(numbers) + 1, device=device)
        return cls(tuple(numbers), torch.stack([places[number] for number in numbers]))


class Ledger:
    """The features of one branch, that is of the calls that compute the same samples, by name, each newest first.

    The ledger holds references: who stores a tensor must not write to it any more.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Feature, ...]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._held

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        held = 0
        for nodes in self._held.values():
            for feature in nodes:
                held += feature.nbytes
        return held

    def store(self, name: str, *nodes: Feature) -> None:
        """Keep these, newest first, in place of what there is of that name."""
        self._held[name] = nodes

    def nodes(self, name: str, layout: TokenLayout) -> tuple[Feature, ...]:
        """What is held of a name, newest first. Raises StaleFeature under another layout object than its own."""
        nodes = self._held.get(name, ())
        if nodes and nodes[0].layout is not layout:
            raise StaleFeature(name, nodes[0].layout, layout)
        return nodes

    def get(self, name: str, layout: TokenLayout, older: int = 0) -> Feature | None:
        """One of the nodes, the newest by default, or None. Raises StaleFeature as `nodes` does."""
        nodes = self.nodes(name, layout)
        return nodes[older] if older < len(nodes) else None

    def record(
        self, name: str, values: Tensor, layout: TokenLayout, step: int, sigma: float,
        samples: Samples | None = None, keep: int = 1,
    ) -> None:  # fmt: skip
        """Keep what was computed at `step`: `values` (B, n + extra, d), or (k, ...) of some samples alone.

        `layout` is that of the whole batch. Each of these samples' `keep - 1` earlier values move one place back; the
        other samples' histories stay as they are. Raises StaleFeature if what is stored has another layout, ValueError
        for keep < 1, or shapes that do not fit.
        """
        if keep < 1:
            raise ValueError(f"keep must be 1 or more, got {keep}")
        nodes = self.nodes(name, layout)
        if samples is None or samples.numbers == tuple(range(layout.batch)):
            self._held[name] = (Feature.fresh(values, layout, step, sigma), *nodes[: keep - 1])
            return
        part = layout.pick(samples.rows)
        held, kept = Feature.fresh(values, part, step, sigma), []
        for older in nodes[:keep]:
            kept.append(older.put(samples.numbers, samples.rows, held))
            held = older.pick(samples.numbers, samples.rows, part)
        if len(kept) < keep:
            kept.append(Feature.blank(values, layout).put(samples.numbers, samples.rows, held))
        self._held[name] = tuple(kept)

    def record_tokens(
        self, name: str, values: Tensor, layout: TokenLayout, step: int, sigma: float,
        rows: Tensor, tokens: Tensor, keep: int = 1, known: Counts | None = None,
    ) -> None:  # fmt: skip
        """As `record`, for some tokens alone: `values` (k, m, d) of the tokens (k, m) of the samples `rows` (k,).

        These tokens' earlier values move one place back, all others stay. known: the newest one's marks, counted, if
        the host knows them. Raises StaleFeature as `record` does, ValueError if nothing was recorded before.
        """
        nodes = self.nodes(name, layout)
        if not nodes:
            raise ValueError(f"feature {name!r} must be recorded for all tokens before it is for some")
        stamps, places = stamped(tokens, step, sigma), (rows[:, None], tokens)
        kept: list[Feature] = []
        blanks = [Feature.blank(nodes[0].values, layout)] * (len(nodes) < keep)
        for older in (*nodes[:keep], *blanks):
            kept.append(older.put_tokens(rows, tokens, values, stamps, None if kept else known))
            values, stamps = older.values[places], older.stamps.pick(places)
        self._held[name] = tuple(kept)

    def read(self, name: str, layout: TokenLayout, inherited: bool = False) -> Reading | None:
        """A feature's newest values and for which samples they may be used; None if there is none of that name.

        INHERITED tokens may be used only with `inherited`, EMPTY ones never. Raises StaleFeature under another layout
        object than its own.
        """
        feature = self.get(name, layout)
        return None if feature is None else Reading(feature.values, feature.readable(inherited))

    def history(
        self, name: str, layout: TokenLayout, inherited: bool = False, by_token: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """(level (B,), values (B, n + extra, d)) of a recorded feature, newest first; nan where unreadable.

        by_token: levels (B, n + extra), one for each token. Raises StaleFeature under another layout.
        """
        nodes = self.nodes(name, layout)
        return [((node.token_levels if by_token else node.level)(inherited), node.values) for node in nodes]

    def uniform_history(self, name: str, layout: TokenLayout, most: int) -> list[tuple[float, Tensor]] | None:
        """As `history`, at most so many, where the host knows one level for all tokens of each; else None."""
        found = []
        for node in self.nodes(name, layout)[:most]:
            if (level := node.at) is None:
                return None
            found.append((level, node.values))
        return found or None

    def move(self, layout: TokenLayout, tokens: TokenMap, changed: Tensor | None = None) -> None:
        """Every feature under another layout of the plane (see `Feature.move`), in place of the old ones."""
        for name, nodes in self._held.items():
            self._held[name] = tuple(node.move(layout, tokens, changed) for node in nodes)

    def pick(self, samples: Samples, layout: TokenLayout) -> Ledger:
        """What is held of some samples, under a `layout` that has theirs."""
        part = Ledger()
        for name, nodes in self._held.items():
            part._held[name] = tuple(node.pick(samples.numbers, samples.rows, layout) for node in nodes)
        return part

    def drop(self, name: str) -> None:
        """Forget one feature, if there is one of that name."""
        self._held.pop(name, None)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
