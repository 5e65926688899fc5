"""Z-Image's rotary embedder, no module and for whole places alone, with the tokens of a layout at their own places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.hooks import is_first_placed, placed_after

Active = Callable[[], LayoutCall | None]


def placed_ropes(transformer: Any, embedder: nn.Module, active: Active) -> list[Any]:
    """What places the image's tokens where `active` says; they are placed first after their `embedder` ran."""
    return [placed_after(embedder, active), _Standing(transformer, active)]


class _Rope:
    """Stands in for the `stock` embedder while one of its users is placed otherwise."""

    def __init__(self, stock: Any) -> None:
        self.stock, self.users = stock, list[Active]()

    def __reduce__(self) -> Any:
        """A copy of the model has the stock embedder."""
        return _itself, (self.stock,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def __call__(self, ids: Tensor) -> Tensor:
        call = next((call for active in self.users if (call := active()) is not None), None)
        if call is None or not is_first_placed() or call.positions is None:
            return self.stock(ids)
        return _factors(self.stock, ids, call)


class _Standing:
    """One user of the rope that stands in the transformer; the last to leave puts the stock one back."""

    def __init__(self, transformer: Any, active: Active) -> None:
        self.transformer, self.active = transformer, active
        if not isinstance(transformer.rope_embedder, _Rope):
            transformer.rope_embedder = _Rope(transformer.rope_embedder)
        transformer.rope_embedder.users.append(active)

    def remove(self) -> None:
        rope = self.transformer.rope_embedder
        if isinstance(rope, _Rope) and self.active in rope.users:
            rope.users.remove(self.active)
            if not rope.users:
                self.transformer.rope_embedder = rope.stock


def _itself(stock: Any) -> Any:
    return stock


def _factors(rope: Any, ids: Tensor, call: LayoutCall) -> Tensor:
    """(b N, d / 2) complex: the layout's tokens of each sample and behind them its padding, as `ids` has it at place 0.

    A sample's picture stands behind its caption, whose length is in the ids of its first token.
    """
    positions = call.positions
    assert positions is not None
    key = id(rope), id(call.layout), "rows and columns"
    if key not in call.tables:
        sides = zip(positions.unbind(-1), (1, 2), strict=True)
        call.tables[key] = torch.cat([_axis(rope, axis, place) for place, axis in sides], -1)
    own = call.tables[key] if call.samples is None else call.tables[key][call.samples]
    batch, count = own.shape[:2]
    frames = ids.unflatten(0, (batch, -1))[:, :, 0]
    first = rope(torch.nn.functional.pad(frames.flatten()[:, None], (0, 2))).unflatten(0, (batch, -1))
    depth = first.shape[-1] - own.shape[-1]
    placed = torch.cat([first[:, :count, :depth], own], -1)
    return torch.cat([placed, first[:, count:]], 1).flatten(0, 1)


def _axis(rope: Any, axis: int, place: Tensor) -> Tensor:
    """Complex factors (B, n, dim / 2) of one axis; computed as the stock table is: on the host, in float64."""
    values, index = place.unique(return_inverse=True)
    dim = rope.axes_dims[axis]
    rates = 1.0 / (rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
    angles = torch.outer(values.cpu().double(), rates).float()
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(place.device)[index]
