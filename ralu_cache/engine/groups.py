"""The groups of a denoiser call: what the blocks do for each, one after the other, and the prediction of them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.protocols import Adapter, Blocks, Cost, Layers, Tokens
from ralu_cache.engine.blocks import BlockStack
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.guided import whole, with_prediction
from ralu_cache.engine.states import Pending, RootState
from ralu_cache.engine.verdict import Group
from ralu_cache.history.attention import Rows
from ralu_cache.history.layer_cache import LayerCache


class Uncounted(Cost):
    """The cost of calls of a family that does not say it."""

    def flops(self, call: Mapping[str, Any]) -> float:
        return math.nan

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        return math.nan


class Groups:
    """Runs the groups of one denoiser's calls: the first is the call itself, the others are calls of our own."""

    def __init__(self, module: nn.Module, adapter: Adapter) -> None:
        self.module, self.adapter = module, adapter
        self.costs: Cost = adapter if isinstance(adapter, Cost) else Uncounted()
        self._tokens = adapter if isinstance(adapter, Tokens) else None
        self._blocks = adapter if isinstance(adapter, Blocks) else None
        self._layers = adapter if isinstance(adapter, Layers) else None

    def enter(
        self, state: RootState, pending: Pending, group: Group, stack: BlockStack | None
    ) -> Mapping[str, Any]:
        """Make ready for the call of one group of samples; returns its arguments. stack: the hooks in the blocks."""
        run, branch, call, fresh = pending.run, pending.branch, pending.call, None
        if group.samples is not None:
            call = self.adapter.select(call, group.samples.rows)
        flops = uncached = self._cost(pending, group, call)
        if branch is not None:
            call, flops, fresh = self._enter_blocks(state, branch, pending, group, call, flops, stack)
        run.tally.add_flops(flops, max(0.0, uncached - flops))
        state.active = run.placed(pending.layout, pending.positions, call, group.rows, fresh)
        return call

    def finish(self, state: RootState, pending: Pending, output: Any, stack: BlockStack | None) -> Any:
        """Call the model for the remaining groups; returns the full prediction, None if it is the output as it is."""
        groups, pair, run = pending.groups, pending.pair, pending.run
        parts = [self.adapter.opened_prediction(output[0])]
        self._keep(state, pending, groups[0], parts[0])
        whole_call = pair is None and pending.forecast is None and not pending.flipped
        if len(groups) == 1 and pending.positions is None and whole_call:
            return None
        state.depth, state.nested = 1, True
        try:
            for group in groups[1:]:
                arguments = self.adapter.closed(self.enter(state, pending, group, stack))
                parts.append(self.adapter.opened_prediction(self.module(**arguments)[0]))
                self._keep(state, pending, group, parts[-1])
        finally:
            state.depth, state.nested = 0, False
        prediction = _assemble(parts, groups)
        if pending.positions is not None:
            assert self._tokens is not None
            prediction = self._tokens.lengthen(prediction, pending.layout)
        if pending.forecast is not None:
            prediction = pending.forecast.filled(prediction, self.adapter, run, pending.call[self.adapter.takes])
        if pair is not None:
            prediction = whole(pair, run, state.known, prediction)
        if pending.flipped:
            prediction = prediction[other_half_first(prediction)]
        return with_prediction(output, self.adapter.closed_prediction(prediction))

    def _enter_blocks(
        self,
        state: RootState,
        branch: Branch,
        pending: Pending,
        group: Group,
        call: Mapping[str, Any],
        full: float,
        stack: BlockStack | None,
    ) -> tuple[Mapping[str, Any], float, Rows | None]:
        """Say what the blocks do in a group's call; returns its arguments, its FLOPs, and the tokens that run alone.

        full: its FLOPs if all is computed.
        """
        cache = branch.cache
        if cache.layers is not None:
            assert stack is not None
            return call, self._enter_layers(state, cache.layers, branch, pending, group, call, stack), None
        rows = None
        if cache.memory is not None:
            rows = branch.rows(group, pending.layout, self._text(call))
        if group.residual is None:
            state.stack.run(rows)
            return call, full, None
        if group.tokens is None:
            assert self._blocks is not None
            state.stack.skip(group.residual)
            call = self._blocks.without_control(call)
            return call, self._cost(pending, group, call, skipped=True), None
        assert self._layers is not None
        state.stack.run(rows, group.residual)
        call = self._layers.sparse_control(call, group.tokens)
        return call, self._layers.sparse_flops(call, group.tokens.shape[1]), rows

    def _enter_layers(
        self,
        state: RootState,
        cache: LayerCache,
        branch: Branch,
        pending: Pending,
        group: Group,
        call: Mapping[str, Any],
        stack: BlockStack,
    ) -> float:
        """Say what each layer does in a group's call; returns its FLOPs."""
        assert stack.layers is not None and self._layers is not None
        cache.check(pending.layout)
        layers, policy, text = stack.layers, branch.policy, self._text(call)
        state.stack.run()
        if group.residual is None:
            state.stack.mode = layers.record(cache, text, group.rows, policy.order + 1)
            return self.costs.flops(call)
        if policy.caches == "layers":
            state.stack.mode = layers.forecast(cache, *branch.forecast_layer(), text, group.rows)
            return self._layers.replay_flops(call)
        image, context = branch.refresh(group, text, layers.singles)
        state.stack.mode = layers.replay(cache, text, group.rows, image, context)
        counts = (() if fresh is None or fresh.counts is None else fresh.counts for fresh in (image, context))
        return self._layers.replay_flops(call, *counts)

    def _cost(self, pending: Pending, group: Group, call: Mapping[str, Any], skipped: bool = False) -> float:
        """FLOPs of a group's call in full, or with all blocks passed over; counted once for all steps of a branch, and
        apart for a first call that does more."""
        numbers = None if group.samples is None else len(group.samples.numbers)
        key = skipped, numbers, self.costs.later(call) is call
        costs = {} if pending.branch is None else pending.branch.costs
        if (known := costs.get(key)) is None:
            known = costs[key] = (self.costs.skipped_flops if skipped else self.costs.flops)(call)
        return known

    def _text(self, call: Mapping[str, Any]) -> int:
        """Text tokens that run through the blocks, where layers are known; nobody else asks."""
        return 0 if self._layers is None else self._layers.size(call)[2]

    def _keep(self, state: RootState, pending: Pending, group: Group, prediction: Tensor) -> None:
        """Keep what a group computed."""
        branch = pending.branch
        if branch is None or not group.computes:
            return
        if prediction.requires_grad and branch.policy.caches != "stack":
            raise ValueError(
                f"gradients do not flow through what {type(branch.policy).__name__} keeps of layers or of some tokens; "
                "use a policy that reuses the residual of all blocks (teacache, seacache, taylorseer), or "
                "torch.no_grad()"
            )
        assert pending.situation is not None
        branch.record(group, state.stack.take(), pending.situation)


def other_half_first(rows: Tensor) -> Tensor:
    """(B,) int64: the rows of the second half, then those of the first."""
    return torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)


def _assemble(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """The predictions of a call's groups, back in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    together = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    for part, group in zip(parts, groups, strict=True):
        together[group.rows] = part
    return together
