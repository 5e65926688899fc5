"""Shares: which of the run's samples the rows of a denoiser call are, and on which tokens it is made."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ralu_cache.history.ledger import Samples
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.spatial import ANCHORS, SpatialMethod

Rows = tuple[int, ...]
"""Of each row of a call, the number of its sample in the run's layout."""


class Shares:
    """The calls that are made on one layout of a run; with another layout, or a smaller batch, they begin anew.

    tables: what depends on a call's layout alone, by whoever makes it (rotary tables, positions).
    """

    def __init__(self) -> None:
        self.tables: dict[Any, Any] = {}
        self._layouts: dict[Rows, TokenLayout] = {}
        self._whole: dict[int, tuple[Rows, TokenLayout]] = {}  # by the batch of a call on copies of all

    def clear(self) -> None:
        for held in (self.tables, self._layouts, self._whole):
            held.clear()

    def renew(self, layout: TokenLayout) -> None:
        """Begin anew on another layout, for the calls that there were."""
        calls = [*self._layouts]
        self.tables, self._layouts, self._whole = {}, {}, {}
        for rows in calls:  # what waits for the device does so here, not in the steps to come
            _ = self.layout_of(rows, layout).shared

    def settle(self, batch: int) -> None:
        """The run's layout has `batch` samples only, of which the others were copies."""
        self._layouts = {tuple(row % batch for row in rows): held for rows, held in self._layouts.items()}
        self._whole = {}

    def of(self, batch: int, layout: TokenLayout) -> tuple[Rows, TokenLayout]:
        """The rows of a call on whole copies of the run's batch, and their layout."""
        if batch not in self._whole:
            rows = copies(batch, layout)
            self._whole[batch] = rows, self.layout_of(rows, layout)
        return self._whole[batch]

    def layout_of(self, rows: Rows, layout: TokenLayout) -> TokenLayout:
        """The layout of a call on these rows; the same object all through a stage."""
        if rows not in self._layouts:
            if len(rows) % layout.batch == 0 and rows == copies(len(rows), layout):
                self._layouts[rows] = layout.repeat(len(rows))
            else:
                self._layouts[rows] = layout.pick(Samples.of(rows, layout.refined.device).rows)
        return self._layouts[rows]

    def positions(self, layout: TokenLayout, method: SpatialMethod) -> Tensor:
        """(B, n, 2) float32 position ids of a call's tokens, made once a layout."""
        key = ("positions", id(layout))
        if key not in self.tables:
            anchor = ANCHORS[method.anchor]
            ids = layout.positions(anchor)
            self.tables[key] = ids if method.positions == "fine" else (ids - anchor) / 2
        found: Tensor = self.tables[key]
        return found


def copies(batch: int, layout: TokenLayout) -> Rows:
    """The rows of a call of `batch`: all samples of the layout, one copy after another. Raises ValueError for a rest"""
    if batch % layout.batch:
        raise ValueError(f"a call of batch {batch} does not hold whole copies of a batch of {layout.batch}")
    return tuple(range(layout.batch)) * (batch // layout.batch)
