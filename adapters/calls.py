"""What an adapter is told of a denoiser call: on which tokens it is made, and what its run is to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ralu_cache.history.attention import Rows
from ralu_cache.plane.canvas import TokenLayout


@dataclass(slots=True)
class LayoutCall:
    """A denoiser call of the run in flight, on the tokens of `layout`.

    `positions` (B, n, 2) are theirs if the call was shortened, None if it is the stock call; they count on a grid of
    `extent` (rows, columns). `samples` are those of the batch that the call is made for, None for all; `fresh` says
    which of their tokens run through the blocks, None if all do. `tables` keeps what depends on the layout alone
    (rotary tables, by module and number of ids) from step to step. `staged`: the run has stages, so other calls bring
    tables that differ between samples; then all do, for compiled blocks are compiled again for each kind.
    """

    layout: TokenLayout
    positions: Tensor | None
    call: Mapping[str, Any]
    tables: dict[Any, Any]
    extent: tuple[int, int]
    samples: Tensor | None = None
    fresh: Rows | None = None
    staged: bool = False


@dataclass(frozen=True)
class Setting:
    """What a run is to do with the calls that `Adapter.check` sees.

    staged: it has spatial stages. caches: what its temporal policy keeps (`Policy.caches`), None without one. steps: of
    the run; believed_steps: how many the pipeline takes it for, where it does not count the levels it is given.
    leaves_out: at some steps the model may not be called at all.
    """

    staged: bool
    caches: str | None
    steps: int
    believed_steps: int | None
    leaves_out: bool
