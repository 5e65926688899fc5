"""The native root hook pair: short token sets into the denoiser, full canvases out of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import Adapter
from ralu_cache.canvas import TokenLayout
from ralu_cache.run import Run


@dataclass(frozen=True)
class LayoutCall:
    """A denoiser call of the run in flight, on the tokens of `layout`.

    `positions` (B, n, 2) are theirs if the call was shortened, None if it is the stock call. `tables` keeps what
    depends on the layout alone (rotary tables, by module and number of ids) from step to step.
    """

    layout: TokenLayout
    positions: Tensor | None
    call: Mapping[str, Any]
    tables: dict[Any, Any]


class RunOwner(Protocol):
    """Who installs root hooks and knows the run under way."""

    def current_run(self) -> Run | None: ...

    def drop_run(self) -> None: ...


class RootHook:
    """Reduces each call of `module` that belongs to the current run to the run's layout, and expands its prediction.

    `reduce_only` is for ControlNets: what they return feeds the reduced denoiser directly. Native torch hooks, because
    whatever replaces `.forward` is lost when offload hooks are installed around it.
    """

    def __init__(self, module: nn.Module, adapter: Adapter, owner: RunOwner, reduce_only: bool = False) -> None:
        self.module, self.adapter, self.owner, self.reduce_only = module, adapter, owner, reduce_only
        self.active: LayoutCall | None = None
        self._names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
        self.handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            *adapter.install_positions(module, lambda: self.active),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        self.active = None
        run = self.owner.current_run()
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if run is None or not _same_level(self.adapter.sigma(call), run.sigma):
            return None
        grid = run.grid or self.adapter.grid(call)
        latents = self.adapter.latents(call, grid)
        run.begin(grid, latents)
        assert run.layout is not None
        if run.follow(module) and hasattr(module, "_reset_stateful_cache"):
            cast(Any, module)._reset_stateful_cache()  # caches that the user enabled do not outlive a layout
        layout = run.layout_for(latents.shape[0])
        short, positions = call, None
        if not layout.all_fine:
            tokens = layout.reduce(run.model_input(latents))
            positions = run.positions(layout)
            short = self.adapter.shorten(call, layout, tokens, positions)
        self.active = LayoutCall(layout, positions, short, run.tables)
        if not self.reduce_only:
            run.count_call(self.adapter.flops(short), self.adapter.flops(call))
        return None if positions is None else ((), short)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        active, self.active = self.active, None
        if output is None:  # the call failed: free what the run holds
            self.owner.drop_run()
        if active is None or active.positions is None or output is None or self.reduce_only:
            return None
        prediction = self.adapter.lengthen(output[0], active.layout)
        return (prediction, *output[1:]) if isinstance(output, tuple) else type(output)(sample=prediction)


def installed_owner(module: nn.Module) -> Any:
    """Who installed a root hook on `module`, or None."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(root := getattr(hook, "__self__", None), RootHook):
            return root.owner
    return None


def _same_level(given: Tensor, sigma: float) -> bool:
    """True if a call's noise level is the run's, as exactly as the call's dtype can tell; others are not ours."""
    tolerance = 4 * torch.finfo(given.dtype).eps if given.is_floating_point() else 1e-6
    return abs(float(given.flatten()[0]) - sigma) <= max(tolerance, 1e-6)
