"""Lines: what a prediction would be at a level where it is not computed, from nodes at others.

`y(s) = y_1 + (y_1 - y_0) (s - s_1) / (s_1 - s_0)` through the newest node and an older one; order 2 takes a third.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ralu_cache.history.nodes import Predictions
from ralu_cache.history.residuals import SMALLEST_GAP, extrapolate_uniform
from ralu_cache.plane.canvas import TokenLayout

GAP = 0.6
"""Nodes of a line stand at least this far apart, in lengths of the forecast: closer ones make its slope noise."""

QUANTITIES = ("velocity", "clean", "auto")


def chosen(levels: Sequence[float], at: float, order: int = 1, gap: float = GAP) -> tuple[int, ...]:
    """Which of the nodes at `levels`, newest first, a forecast at level `at` reads: the newest, and up to `order` more.

    Each older one is the newest that stands at least `gap` times the forecast's own reach from all that were chosen
    before it; where there is none, the forecast has a lower degree. Raises ValueError for no nodes.
    """
    if not levels:
        raise ValueError("nothing to forecast from: there is no node")
    apart = max(gap * abs(at - levels[0]), SMALLEST_GAP)
    found = [0]
    for place in range(1, len(levels)):
        if len(found) > order or abs(at - levels[0]) <= SMALLEST_GAP:
            break
        if all(abs(levels[place] - levels[other]) >= apart for other in found):
            found.append(place)
    return tuple(found)


def forecast(
    known: Predictions, layout: TokenLayout, at: float, quantity: str, order: int = 1, gap: float = GAP,
    damping: float = 1.0,
) -> Tensor:  # fmt: skip
    """The "clean" estimate or the "velocity" of every sample at level `at`, (B, C, H, W) float32.

    damping: how much of the way from the newest value to the line is gone. Each sample reads its own nodes, those of
    its newest one's kind. Raises StaleFeature under another layout than the nodes', ValueError where a sample has none.
    """
    nodes = known.under(layout)
    plans = [_plan(known, sample, at, order, gap) for sample in range(layout.batch)]
    if all(plan == plans[0] for plan in plans):
        return along([(level, nodes[place].value(quantity)) for place, level in plans[0]], at, damping)
    return torch.stack(
        [
            along([(level, nodes[place].value(quantity)[sample]) for place, level in plan], at, damping)
            for sample, plan in enumerate(plans)
        ]
    )


def _plan(known: Predictions, sample: int, at: float, order: int, gap: float) -> list[tuple[int, float]]:
    """(place, level) of the nodes that a sample's forecast reads."""
    places = known.places(sample)
    levels = [known.nodes[place].levels[sample] for place in places]
    return [(places[number], levels[number]) for number in chosen(levels, at, order, gap)]


def along(nodes: Sequence[tuple[float, Tensor]], at: float, damping: float) -> Tensor:
    """On the polynomial through all nodes, newest first; the newest alone stays as it is, bit for bit."""
    newest = nodes[0][1]
    return newest if len(nodes) == 1 else torch.lerp(newest, extrapolate_uniform(nodes, at), damping)
