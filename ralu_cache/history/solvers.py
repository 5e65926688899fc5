"""Solvers by name: how the canvas goes from one computed level to the next.

"euler" is the stock step. "multistep" reads the clean estimates of earlier steps, over transitions too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ralu_cache.history.multistep import corrector, half_log_snr, predictor
from ralu_cache.history.nodes import Predictions

CLOSE = 0.2
"""Estimates nearer than this to the step's start, in lengths of the step, are passed over.

Within a stage none is: levels fall in steps of like lengths. Behind a transition some are, for the level went up.
"""
ORDERS = (1, 2, 3)

Weights = tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Multistep:
    """An exponential multistep solver: UniPC (arXiv 2302.04867), without its corrector DPM-Solver++ (arXiv 2211.01095).

    order: 1 to 3, lower where fewer estimates are there and in the run's last steps. corrector: mend each step by the
    estimate computed at its end. Better than Euler steps with little or no guidance, worse with much: at guidance 6 a
    plan of 8 coarse steps lost 9 points of what is drawn by it (`benchmarks/results/history`).

    Raises ValueError, with the value, for anything else.
    """

    order: int = 2
    corrector: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in ORDERS:
            raise ValueError(f"order must be one of 1, 2, 3, got {self.order!r}")
        if not isinstance(self.corrector, bool):
            raise ValueError(f"corrector must be one of True, False, got {self.corrector!r}")

    @property
    def name(self) -> str:
        """As `resolve_solver` reads it."""
        return ("multistep" if self.corrector else "dpm") + ("" if self.order == 2 else f":{self.order}")


def resolve_solver(spec: str | Multistep | None) -> Multistep | None:
    """None or "euler": the stock step, None; "multistep", "multistep:3", "dpm" or a `Multistep` -> the config.

    Raises ValueError or TypeError for anything else.
    """
    if spec is None or isinstance(spec, Multistep):
        return spec
    if not isinstance(spec, str):
        raise TypeError(f"solver must be None, a name or a Multistep(...), got {spec!r}")
    name, colon, order = spec.partition(":")
    if name == "euler" and not colon:
        return None
    if name not in ("multistep", "dpm") or (colon and order not in map(str, ORDERS)):
        raise ValueError(
            f"unknown solver {spec!r}; accepted: None, 'euler', 'multistep', 'multistep:3' (its order, 1 to 3), "
            "'dpm' (without the corrector), or a Multistep(...)"
        )
    return Multistep(int(order or 2), corrector=name == "multistep")


@dataclass(frozen=True, eq=False)
class Made:
    """A step that a solver made: the canvas (B, C, H, W) that it began with, and of each sample the levels it read."""

    canvas: Tensor
    levels: tuple[tuple[float, ...], ...]

    def pick(self, rows: Sequence[int]) -> Made:
        return Made(torch.stack([self.canvas[row] for row in rows]), tuple(self.levels[row] for row in rows))


def step(solver: Multistep, known: Predictions, canvas: Tensor, to: float, left: int) -> tuple[Tensor, Made]:
    """From each sample's newest node, at which its `canvas` (B, C, H, W) stands, to the level `to`.

    left: how many computed steps are left in the run, this one included; the order is no higher.
    """
    read = tuple(readable(known.levels(sample), to, min(solver.order, left)) for sample in range(len(canvas)))
    weights = [predictor(levels, to) for levels in read]
    return _sum(known, canvas, read, weights), Made(canvas, read)


def correct(solver: Multistep, known: Predictions, made: Made | None, canvas: Tensor) -> Tensor:
    """The canvas to which a step led, mended by what was computed there: the newest node of each sample.

    A sample stays as it is if the solver has no corrector, the step is not known, or what it read is of another kind.
    """
    if made is None or not solver.corrector:
        return canvas
    there = [known.levels(sample) for sample in range(len(canvas))]
    mended = [bool(own) and set(levels) <= set(own[1:]) for own, levels in zip(there, made.levels, strict=True)]
    if not any(mended):
        return canvas
    read = [(own[0], *levels) if good else () for own, levels, good in zip(there, made.levels, mended, strict=True)]
    weights: list[Weights] = [corrector(levels[1:], levels[0]) if levels else (1.0, ()) for levels in read]
    if all(mended):
        return _sum(known, made.canvas, read, weights)
    starts = torch.stack([made.canvas[n] if good else canvas[n] for n, good in enumerate(mended)])
    return _sum(known, starts, read, weights)


def readable(levels: Sequence[float], to: float, order: int) -> tuple[float, ...]:
    """The newest level, and those of the next ones that are far enough from it and from each other."""
    reach = abs(half_log_snr(to) - half_log_snr(levels[0]))
    if math.isinf(reach):
        return (levels[0],)
    found: list[float] = []
    for level in levels:
        if len(found) == order:
            break
        if all(abs(half_log_snr(level) - half_log_snr(other)) >= CLOSE * reach for other in found):
            found.append(level)
    return tuple(found)


def _sum(known: Predictions, canvas: Tensor, read: Sequence[Sequence[float]], weights: Sequence[Weights]) -> Tensor:
    """`a x + sum(w D)`, for all samples at once where they read the same nodes."""
    places = [[_place(known, sample, level) for level in levels] for sample, levels in enumerate(read)]
    if all(place == places[0] for place in places) and all(weight == weights[0] for weight in weights):
        a, parts = weights[0]
        return added(a, canvas, [(w, known.nodes[place].clean) for w, place in zip(parts, places[0], strict=True)])
    return torch.stack(
        [_one(known, canvas, sample, read[sample], weights[sample]) for sample in range(len(canvas))]
    )


def _one(known: Predictions, canvas: Tensor, sample: int, read: Sequence[float], weights: Weights) -> Tensor:
    a, parts = weights
    nodes = [known.nodes[_place(known, sample, level)].clean[sample] for level in read]
    return added(a, canvas[sample], list(zip(parts, nodes, strict=True)))


def added(a: float, canvas: Tensor, parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    result = a * canvas if a else torch.zeros_like(canvas)
    for weight, value in parts:
        result = result + weight * value if weight else result
    return result


def _place(known: Predictions, sample: int, level: float) -> int:
    return next(place for place in known.places(sample) if known.nodes[place].levels[sample] == level)
