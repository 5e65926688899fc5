"""Where small labels go so that they cover neither a point nor one another."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
RADII = (
    11.0,
    15.0,
    21.0,
    28.0,
)  # of the label's middle from its point; all lengths in typographic points or SVG pixels
ANGLES = 12


def place_labels(
    points: Sequence[Point], size: Point, frame: Point, marker: float = 9.0, obstacles: Sequence[Point] = ()
) -> list[Point]:
    """The middles of one label of `size` (width, height) for each point, in the points' order.

    frame: the width and height of the plot, from 0. marker: a point's width. obstacles: further points. Greedy: each
    label takes, in turn, the place around its point which overlaps least with points, labels and the frame's outside,
    and of equal ones the nearest.
    """
    dots = [*points, *obstacles]
    placed: list[Point] = []
    for point in points:

        def cost(middle: Point, point: Point = point) -> float:
            hidden = sum(_overlap(middle, size, dot, (marker, marker)) for dot in dots)
            hidden += sum(_overlap(middle, size, other, size) for other in placed)
            x, y = middle
            outside = max(0, size[0] / 2 - x, x + size[0] / 2 - frame[0]) + max(0, size[1] / 2 - y, y - frame[1])
            return hidden + 20 * outside + 0.05 * math.dist(middle, point)

        placed.append(min(_around(point), key=cost))
    return placed


def _around(point: Point) -> list[Point]:
    turns = [2 * math.pi * index / ANGLES for index in range(ANGLES)]
    return [(point[0] + r * math.cos(turn), point[1] + r * math.sin(turn)) for r in RADII for turn in turns]


def _overlap(a: Point, a_size: Point, b: Point, b_size: Point) -> float:
    """The area that two boxes, by their middles and sizes, share."""
    width = (a_size[0] + b_size[0]) / 2 - abs(a[0] - b[0])
    height = (a_size[1] + b_size[1]) / 2 - abs(a[1] - b[1])
    return max(0.0, width) * max(0.0, height)
