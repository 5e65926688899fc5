"""The native root hook pair: short token sets into the denoiser, full canvases out of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import Adapter
from ralu_cache.attention import Rows
from ralu_cache.blocks import BlockStack
from ralu_cache.branches import Branch
from ralu_cache.canvas import TokenLayout
from ralu_cache.known import on_host, plain
from ralu_cache.layer_cache import LayerCache
from ralu_cache.run import Run
from ralu_cache.verdict import Group


@dataclass(frozen=True)
class LayoutCall:
    """A denoiser call of the run in flight, on the tokens of `layout`.

    `positions` (B, n, 2) are theirs if the call was shortened, None if it is the stock call; they count on a grid of
    `extent` (rows, columns). `rows` are the samples of the batch that the call is made for, None for all; `fresh` says
    which of their tokens run through the blocks, None if all do. `tables` keeps what depends on the layout alone
    (rotary tables, by module and number of ids) from step to step.
    """

    layout: TokenLayout
    positions: Tensor | None
    call: Mapping[str, Any]
    tables: dict[Any, Any]
    extent: tuple[int, int]
    rows: Tensor | None = None
    fresh: Rows | None = None


@dataclass(frozen=True)
class Pending:
    """One denoiser call while its groups of samples, computed or reused, run one after the other."""

    run: Run
    layout: TokenLayout
    positions: Tensor | None
    call: Mapping[str, Any]
    branch: Branch | None
    groups: Sequence[Group]


class RunOwner(Protocol):
    """Who installs root hooks and knows the run under way."""

    def current_run(self) -> Run | None: ...

    def drop_run(self) -> None: ...


class RootHook:
    """Reduces each call of `module` that belongs to the current run to the run's layout, and expands its prediction.

    `stack` is there if the run may cache: then the samples of a call that are to be computed run first, in the call
    itself, and the others in a second call whose blocks are passed over. `reduce_only` is for ControlNets: what they
    return feeds the reduced denoiser directly. Native torch hooks, because whatever replaces `.forward` is lost when
    offload hooks are installed around it.
    """

    def __init__(
        self,
        module: nn.Module,
        adapter: Adapter,
        owner: RunOwner,
        stack: BlockStack | None = None,
        reduce_only: bool = False,
    ) -> None:
        self.module, self.adapter, self.owner, self.stack = module, adapter, owner, stack
        self.reduce_only = reduce_only
        self.active: LayoutCall | None = None
        self._pending: Pending | None = None
        self._nested = False
        self._names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
        self.handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            *adapter.install_positions(module, lambda: self.active),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        if self.stack is not None:
            self.stack.remove()

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        if self._nested:
            return None
        self._rest()
        run = self.owner.current_run()
        if run is not None and run.in_call:  # that never returned: hooks do not see a KeyboardInterrupt
            self.owner.drop_run()
            run = None
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if run is None or not _same_level(self.adapter.sigma(given), run.sigma):
            return None
        call = {name: plain(value) for name, value in given.items()}
        run.in_call = True
        self.adapter.check(call, run)
        grid = run.grid or self.adapter.grid(call)
        latents = self.adapter.latents(call, grid)
        run.begin(grid, latents, self.adapter.frames(call))
        if not self.reduce_only:
            run.enter(module)
        assert run.layout is not None
        layout = run.layout_for(latents.shape[0])
        seen = run.model_input(latents)
        short, positions = call, None
        if run.method is not None and not layout.all_fine:
            positions = run.positions(layout)
            short = self.adapter.shorten(call, layout, layout.reduce(seen), positions)
        branch, groups = None, [Group()]
        if not self.reduce_only:
            run.count_call(self.adapter.flops(call), layout.batch)
            if run.policy is not None:
                branch = run.branch(layout)
                self.active = LayoutCall(layout, positions, short, run.tables, run.extent)
                groups = branch.plan(
                    run.situation(), lambda: self.adapter.modulated_input(module, short), seen,
                    compute=run.wants_text_attention,
                )  # fmt: skip
        self._pending = Pending(run, layout, positions, short, branch, groups)
        return (), dict(self._enter(self._pending, groups[0]))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if output is None:  # the call failed: free what the run holds
            self._rest()
            self.owner.drop_run()
            return None
        pending = self._pending
        if pending is None or self._nested:
            return None
        try:
            return self._finish(module, pending, output)
        except BaseException:
            self.owner.drop_run()
            raise
        finally:
            pending.run.in_call = False
            self._rest()

    def _finish(self, module: nn.Module, pending: Pending, output: Any) -> Any:
        """Call the model for the remaining groups; returns the full prediction, None if it is the output as it is."""
        parts = [self._leave(pending, pending.groups[0], output[0])]
        self._nested = True
        for group in pending.groups[1:]:
            parts.append(self._leave(pending, group, module(**self._enter(pending, group))[0]))
        if self.reduce_only or (len(parts) == 1 and pending.positions is None):
            return None
        prediction = _assemble(parts, pending.groups)
        if pending.positions is not None:
            prediction = self.adapter.lengthen(prediction, pending.layout)
        return (prediction, *output[1:]) if isinstance(output, tuple) else type(output)(sample=prediction)

    def _enter(self, pending: Pending, group: Group) -> Mapping[str, Any]:
        """Make ready for the call of one group of samples; returns its arguments."""
        call = pending.call if group.rows is None else self.adapter.rows(pending.call, group.rows)
        run, branch = pending.run, pending.branch
        flops = uncached = 0.0 if self.reduce_only else self.adapter.flops(call)
        fresh = None
        if branch is not None and self.stack is not None:
            rows = branch.rows(group, pending.layout, self.adapter.size(call)[2])
            if branch.layers is not None:
                flops = self._enter_layers(branch.layers, pending, group, call)
            elif group.residual is None:
                self.stack.run(rows)
            elif group.tokens is None:
                call = self.adapter.without_control(call)
                flops = self.adapter.skipped_flops(call)
                self.stack.skip(group.residual)
            else:
                fresh = rows
                call = self.adapter.sparse_control(call, group.tokens)
                flops = self.adapter.sparse_flops(call, group.tokens.shape[1])
                self.stack.run(rows, group.residual)
        self.active = LayoutCall(pending.layout, pending.positions, call, run.tables, run.extent, group.rows, fresh)
        if not self.reduce_only:
            run.add_flops(flops, max(0.0, uncached - flops))
        return call

    def _enter_layers(self, cache: LayerCache, pending: Pending, group: Group, call: Mapping[str, Any]) -> float:
        """Say what each layer does in a group's call; returns its FLOPs."""
        assert self.stack is not None and self.stack.layers is not None and pending.branch is not None
        cache.check(pending.layout)
        layers, policy, text = self.stack.layers, pending.branch.policy, self.adapter.size(call)[2]
        self.stack.run()
        if group.residual is None:
            layers.record(cache, pending.run.sigma, text, group.rows, policy.order + 1)
            return self.adapter.flops(call)
        if policy.caches == "layers":
            layers.forecast(cache, pending.branch.forecast_layer, text, group.rows)
            return self.adapter.replay_flops(call)
        image, context = pending.branch.refresh(group, text, layers.singles)
        layers.replay(cache, text, group.rows, image, context)
        counts = (() if fresh is None or fresh.counts is None else fresh.counts for fresh in (image, context))
        return self.adapter.replay_flops(call, *counts)

    def _leave(self, pending: Pending, group: Group, prediction: Tensor) -> Tensor:
        """Keep what a group computed."""
        if pending.branch is not None and group.computes:
            assert self.stack is not None
            pending.branch.record(group, self.stack.take(), pending.run.situation())
        return prediction

    def _rest(self) -> None:
        self.active = self._pending = None
        self._nested = False
        if self.stack is not None:
            self.stack.rest()


def _assemble(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """The predictions of a call's groups, back in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    for part, group in zip(parts, groups, strict=True):
        whole[group.rows] = part
    return whole


def installed_owner(module: nn.Module) -> Any:
    """Who installed a root hook on `module`, or None."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(root := getattr(hook, "__self__", None), RootHook):
            return root.owner
    return None


def _same_level(given: Tensor, sigma: float) -> bool:
    """True if a call's noise level is the run's, as exactly as the call's dtype can tell; others are not ours."""
    tolerance = 4 * torch.finfo(given.dtype).eps if given.is_floating_point() else 1e-6
    return abs(float(on_host(given.flatten()[0])) - sigma) <= max(tolerance, 1e-6)
