"""A trail: what a model was computed to say at earlier levels of one run, for samples of any shape at all.

The history of predictions where nothing is known of tokens (`ralu_cache.history.nodes` has it token by token): the same
lines and the same solvers read it. Levels are sigma or what stands for it, 1 noise to 0 clean; they are numbers on the
host, so nothing waits for a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ralu_cache.history.lines import GAP, along, chosen
from ralu_cache.history.multistep import corrector, predictor
from ralu_cache.history.nodes import DEPTH
from ralu_cache.history.solvers import Multistep, added, readable


@dataclass(frozen=True, eq=False)
class Trail:
    """Nodes (level, value in float32), newest first, at most `depth`; every change gives another object."""

    depth: int = DEPTH
    nodes: tuple[tuple[float, Tensor], ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for _, value in self.nodes)

    @property
    def levels(self) -> list[float]:
        return [level for level, _ in self.nodes]

    def record(self, level: float, value: Tensor) -> Trail:
        """With what was computed just now; nodes of another shape go (pipelines drop frames or samples in mid-run)."""
        kept = [node for node in self.nodes if node[1].shape == value.shape]
        return replace(self, nodes=((level, value), *kept)[: self.depth])

    def forecast(self, at: float, order: int = 1, gap: float = GAP, damping: float = 1.0) -> Tensor:
        """The value at a level, on the line through the newest node and those that `lines.chosen` names."""
        places = chosen(self.levels, at, order, gap)
        return along([self.nodes[place] for place in places], at, damping)


@dataclass(frozen=True, eq=False)
class Leap:
    """A step that a solver made: the canvas that it began with, and the levels of the estimates that it read."""

    canvas: Tensor
    levels: tuple[float, ...]


def leap(solver: Multistep, trail: Trail, canvas: Tensor, to: float, left: int) -> tuple[Tensor, Leap]:
    """From the newest node, at which the `canvas` stands, to the level `to`; the trail is one of clean estimates.

    left: how many computed steps are left in the run, this one included; the order is no higher.
    """
    levels = readable(trail.levels, to, min(solver.order, left))
    a, weights = predictor(levels, to)
    return _sum(trail, a, canvas, weights, levels), Leap(canvas, levels)


def mend(solver: Multistep, trail: Trail, made: Leap | None, canvas: Tensor) -> Tensor:
    """The canvas to which a leap led, corrected by what was computed there: the newest node.

    It stays as it is if the solver has no corrector, or the leap is not known, or what it read is gone.
    """
    there = trail.levels
    if made is None or not solver.corrector or not set(made.levels) <= set(there[1:]):
        return canvas
    a, weights = corrector(made.levels, there[0])
    return _sum(trail, a, made.canvas, weights, (there[0], *made.levels))


def _sum(trail: Trail, a: float, canvas: Tensor, weights: tuple[float, ...], levels: tuple[float, ...]) -> Tensor:
    values = dict(reversed(trail.nodes))  # of two nodes at one level the newer
    return added(a, canvas, [(weight, values[level]) for weight, level in zip(weights, levels, strict=True)])
