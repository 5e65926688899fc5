"""Nodes: computed predictions on the canvas, and for every token what they are still worth.

A prediction outlives a change of resolution: what a coarse token's clean estimate says is nearly the mean of what its
four fine ones would say (methods of this project, not published elsewhere). So nodes are moved along, token by token:
clean estimates as features are (`ralu_cache.history.feature`), and the noise beside them by the transition's own rule.
Conventions: sigma 1 is noise, 0 clean; x = (1 - sigma) x0 + sigma n, velocity v = n - x0. Canvases are (B, C, H, W)
float32. Pure tensors; what decides which nodes are read are numbers on the host, so nothing waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ralu_cache.history.feature import StaleFeature
from ralu_cache.history.marks import Mark, moved_marks
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import map_tokens

DEPTH = 4  # nodes kept
NOWHERE = math.nan

Renoise = Callable[[Tensor], Tensor]
"""The noise (B, C, H, W) of a canvas before a transition -> that of the same canvas after it."""


@dataclass(frozen=True, eq=False)
class Node:
    """What was computed at one level of each sample. Nothing is changed in place.

    levels: sigma, one a sample; nan where that sample has no such node. clean: x0. velocity: v. mark: (B, n) uint8, a
    `Mark` for each token of the layout. kinds: of each sample, how it was computed (guided or not, say); nodes of
    different kinds do not lie on one line.
    """

    levels: tuple[float, ...]
    clean: Tensor
    velocity: Tensor
    mark: Tensor
    kinds: tuple[Any, ...]

    def value(self, quantity: str) -> Tensor:
        """The "clean" estimate or the "velocity"."""
        return self.clean if quantity == "clean" else self.velocity

    @property
    def nbytes(self) -> int:
        return self.clean.nbytes + self.velocity.nbytes + self.mark.nbytes

    def pick(self, rows: Sequence[int]) -> Node:
        """The node of some samples alone."""

        def part(whole: Tensor) -> Tensor:
            return torch.stack([whole[row] for row in rows])

        levels, kinds = (tuple(each[row] for row in rows) for each in (self.levels, self.kinds))
        return Node(levels, part(self.clean), part(self.velocity), part(self.mark), kinds)

    def put(self, rows: Sequence[int], other: Node) -> Node:
        """This node with the samples `rows` replaced by those of `other`, in the places of the same numbers."""
        chosen = [other if sample in rows else self for sample in range(len(self.levels))]

        def joined(name: str) -> Tensor:
            return torch.stack([getattr(node, name)[sample] for sample, node in enumerate(chosen)])

        return Node(
            tuple(node.levels[sample] for sample, node in enumerate(chosen)),
            joined("clean"), joined("velocity"), joined("mark"),
            tuple(node.kinds[sample] for sample, node in enumerate(chosen)),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Predictions:
    """The nodes of a run, newest first, at most `depth` for each sample; every change gives another object.

    layout: the one that all nodes belong to; who reads them says under which layout. behind: samples whose nodes stood
    before a transition and that computed nothing since.
    """

    layout: TokenLayout
    depth: int = DEPTH
    nodes: tuple[Node, ...] = ()
    behind: frozenset[int] = field(default=frozenset(), kw_only=True)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth must be 1 or more, got {self.depth}")

    @property
    def nbytes(self) -> int:
        """Memory of all nodes."""
        return sum(node.nbytes for node in self.nodes)

    def under(self, layout: TokenLayout) -> tuple[Node, ...]:
        """The nodes, for who works on `layout`. Raises StaleFeature if they were not moved to it."""
        if layout is not self.layout:
            raise StaleFeature("predictions", self.layout, layout)
        return self.nodes

    def levels(self, sample: int) -> list[float]:
        """The levels of a sample's nodes, newest first, of the newest one's kind alone."""
        return [self.nodes[place].levels[sample] for place in self.places(sample)]

    def places(self, sample: int) -> list[int]:
        """Where a sample's nodes stand in `nodes`, of the newest one's kind alone."""
        there = [place for place, node in enumerate(self.nodes) if not math.isnan(node.levels[sample])]
        return [place for place in there if self.nodes[place].kinds[sample] == self.nodes[there[0]].kinds[sample]]

    def record(
        self, clean: Tensor, velocity: Tensor, level: float, kinds: Sequence[Any] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Predictions:  # fmt: skip
        """With what was computed just now at one level for the samples `rows`, all by default; the rest stay.

        clean, velocity: (B, C, H, W) of all samples; those of others than `rows` are not read. A sample whose values
        are not all finite keeps its last finite ones in their place (zeros, before there are any). Raises ValueError
        for another batch than the layout's, or a level outside of 0 to 1.
        """
        if not 0 <= level <= 1:
            raise ValueError(f"a level lies between 0 and 1, got {level}")
        batch = self.layout.batch
        if clean.shape != velocity.shape or len(clean) != batch:
            raise ValueError(f"predictions of {batch} samples expected, got {clean.shape} and {velocity.shape}")
        mark = torch.full((batch, self.layout.tokens), Mark.VALID, dtype=torch.uint8, device=clean.device)
        before = self.nodes[0] if self.nodes else None
        clean, velocity = _finite(clean, velocity, before)
        new = Node((level,) * batch, clean, velocity, mark, tuple(kinds or (None,) * batch))
        if rows is None or len(rows) == batch:
            return replace(self, nodes=(new, *self.nodes)[: self.depth], behind=frozenset())
        nodes = []
        for place in range(min(self.depth, len(self.nodes) + 1)):
            old = self.nodes[place] if place < len(self.nodes) else _blank(new)
            nodes.append(old.put(rows, new))
            new = old
        return replace(self, nodes=tuple(nodes), behind=self.behind.difference(rows))

    def above(self, level: float, rows: Sequence[int]) -> Predictions:
        """Without those nodes of the samples `rows` that stand below a level.

        Levels fall, but a transition leads up again: a line from the first fine prediction to what coarse tokens had
        computed below it runs into their error (3 + 20 steps to t = 0.3, unguided, 16 pictures: 21.2 dB with such
        nodes, 26.6 without them, 25.1 without any).
        """

        def cut(node: Node) -> Node:
            levels = (
                NOWHERE if sample in rows and own < level else own for sample, own in enumerate(node.levels)
            )
            return replace(node, levels=tuple(levels))

        nodes = tuple(node for node in map(cut, self.nodes) if not all(map(math.isnan, node.levels)))
        return replace(self, nodes=nodes)

    def shifted(self, clean: Tensor, velocity: Tensor, rows: Sequence[int]) -> Predictions:
        """With the nodes behind the newest, of the samples `rows`, moved by the same differences (B, C, H, W).

        Of what they say, their trend alone stays.
        """

        def moved(node: Node) -> Node:
            return node.put(rows, replace(node, clean=node.clean + clean, velocity=node.velocity + velocity))

        return replace(self, nodes=(self.nodes[0], *map(moved, self.nodes[1:])))

    def transfer(
        self, layout: TokenLayout, renoise: Renoise | None = None, changed: Tensor | None = None
    ) -> Predictions:
        """Under another layout of the same plane; see `ralu_cache.history.marks.moved_marks` for what becomes of marks.

        Clean estimates: kept tokens keep their bits, split ones inherit their parent's, merged ones get their
        children's mean. Velocities follow from them and the noise that `renoise` makes of each node's own; by default
        it stays. changed: (B, n) bool, tokens into which fresh noise was mixed. Raises ValueError for another plane.
        """
        tokens = map_tokens(self.layout, layout)

        def moved(node: Node) -> Node:
            mark = moved_marks(node.mark, layout.coarse_tokens, tokens, changed)
            velocity = node.velocity
            if renoise is not None:
                noise = node.clean + node.velocity
                velocity = velocity + (renoise(noise) - noise)
            return replace(
                node, clean=layout.project(node.clean), velocity=layout.project(velocity), mark=mark
            )

        nodes = tuple(moved(node) for node in self.nodes)
        return replace(self, layout=layout, nodes=nodes, behind=frozenset(range(layout.batch)))

    def pick(self, rows: Sequence[int], layout: TokenLayout) -> Predictions:
        """Of some samples alone, under a layout that has theirs."""
        behind = frozenset(place for place, row in enumerate(rows) if row in self.behind)
        return replace(self, layout=layout, nodes=tuple(node.pick(rows) for node in self.nodes), behind=behind)


def _blank(like: Node) -> Node:
    empty = torch.zeros_like(like.clean)
    mark = torch.full_like(like.mark, Mark.EMPTY)
    return Node((NOWHERE,) * len(like.levels), empty, empty, mark, like.kinds)


def _finite(clean: Tensor, velocity: Tensor, before: Node | None) -> tuple[Tensor, Tensor]:
    """Both, with the samples that are not all finite replaced by those of the node before; decided on the device."""
    good = (clean.isfinite() & velocity.isfinite()).flatten(1).all(1).view(-1, 1, 1, 1)
    old = (0.0, 0.0) if before is None else (before.clean, before.velocity)
    return torch.where(good, clean, old[0]), torch.where(good, velocity, old[1])
