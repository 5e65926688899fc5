"""The native root hook pair: short token sets into the denoiser, full canvases out of it.

Native torch hooks, because whatever replaces `.forward` is lost when offload hooks come or go. What a call of the
pipeline needs while a denoiser runs hangs on that call, so several may run through one denoiser at once.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.protocols import (
    Adapter,
    Blocks,
    Cost,
    Layers,
    LayoutCall,
    Probed,
    TextAttention,
    Tokens,
)
from ralu_cache.adapters.ranks import ranks_of
from ralu_cache.adapters.weights import at_hand
from ralu_cache.engine.arguments import control_scale, guidance_scale
from ralu_cache.engine.blocks import BlockStack, StackState
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.context import current
from ralu_cache.engine.disguise import occupy, vacate
from ralu_cache.engine.forecasted import Forecasted, stood_in
from ralu_cache.engine.guided import Pair, answering, known_answer, pair_of, whole, with_prediction
from ralu_cache.engine.probing import find_stack
from ralu_cache.engine.ranked import check_tokens
from ralu_cache.engine.run import Run, Signals
from ralu_cache.engine.states import Pending, RootState
from ralu_cache.engine.verdict import COMPUTED, Group
from ralu_cache.history.attention import Rows
from ralu_cache.history.layer_cache import LayerCache
from ralu_cache.temporal.policy import Policy

NOBODY: frozenset[int] = frozenset()


class Uncounted:
    """The cost of calls of a family that does not say it."""

    def flops(self, call: Mapping[str, Any]) -> float:
        return math.nan

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        return math.nan


class RootHook:
    """Reduces each call of `module` that a call of the handle's pipeline makes to the run's layout, and expands it.

    With a `policy` the samples of a call that are to be computed run first, in the call itself, and the others in a
    second call whose blocks are passed over. `reduce_only` is for ControlNets, the `number`th of the pipeline's: what
    they return feeds the reduced denoiser directly.
    """

    def __init__(
        self, module: nn.Module, adapter: Adapter, handle: Any, policy: Policy | None = None, number: int | None = None
    ) -> None:
        self.module, self.adapter, self.handle, self.policy = module, adapter, handle, policy
        self._tokens = adapter if isinstance(adapter, Tokens) else None
        self._blocks = adapter if isinstance(adapter, Blocks) else None
        self._layers = adapter if isinstance(adapter, Layers) else None
        self._probed = adapter if isinstance(adapter, Probed) else None
        self._probing = threading.Lock()
        self._costs: Cost = adapter if isinstance(adapter, Cost) else Uncounted()
        self.reduce_only, self.number = number is not None, number
        self._form = "calls" if adapter.guidance == "calls" else "stack"
        self._names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
        self._landmarks: list[nn.Module] = []
        self._handles: list[Any] = []
        self.stack: BlockStack | None = None
        try:
            self.refresh()
        except BaseException:  # what refuses leaves nothing behind
            self.remove()
            raise

    def refresh(self) -> None:
        """Hook what the denoiser is made of now: LoRA, quantisation and the like replace parts of it.

        Raises ValueError for what the policy cannot reach into; then nothing is hooked.
        """
        landmarks = self.adapter.landmarks(self.module)
        if self._handles and [*map(id, landmarks)] == [*map(id, self._landmarks)]:
            if self.stack is not None:
                self.stack.refresh()
            return
        self.remove()
        if self.policy is not None and self._probed is not None:
            self._probed.keep(None)
        elif self.policy is not None:
            self._reach_blocks()
        self._handles = [
            self.module.register_forward_pre_hook(Hook(self._before), with_kwargs=True),
            self.module.register_forward_hook(Hook(self._after), with_kwargs=True, always_call=True),
        ]
        if self._tokens is not None:
            self._handles += self._tokens.install_positions(self.module, self.active)
        if not self.reduce_only and self.handle.answers:
            occupy(self.module, self.handle, answering)
        if not self.reduce_only and self.handle.wants_text_attention:
            assert isinstance(self.adapter, TextAttention)
            wanted, keep = self._wants_text_attention, self._keep_text_attention
            self._handles += self.adapter.install_text_attention(self.module, wanted, keep)
        self._landmarks = landmarks

    def _reach_blocks(self) -> None:
        assert self._blocks is not None and self.policy is not None
        self.stack = BlockStack(self.module, self._blocks, self.policy, self.handle, self.working)

    def _probe(self, state: RootState, given: Mapping[str, Any]) -> None:
        """Find the blocks of a denoiser that no adapter knows, by a call of it: once, for all calls to come."""
        if self._probed is None:
            return
        with self._probing:
            if self._probed.found() is None and self.policy is not None:
                self._probed.keep(find_stack(self.module, given, state.stack))
                self._reach_blocks()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        vacate(self.module, self.handle)
        if self.stack is not None:
            self.stack.remove()
            self.stack = None

    def working(self) -> RootState | None:
        """The state of the denoiser while it runs for a call of the handle's pipeline, in the present context."""
        call = current()
        state = None if call is None else call.working
        return state if state is not None and state.root is self and state.ours else None

    def active(self) -> LayoutCall | None:
        """The call that is under way, for the hooks that place its tokens."""
        state = self.working()
        return None if state is None else state.active

    def _wants_text_attention(self) -> bool:
        return self.working() is not None and current().run.wants_text_attention

    def _keep_text_attention(self, share: Tensor) -> None:
        """share: (B, n + extra)."""
        run = current().run
        run.text_attention = share[:, : run.layout.tokens]

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        call = current()
        if call is None or call.handle is not self.handle or call.run is None:
            return None
        state = call.states.get(self)
        if state is None:
            state = call.states[self] = RootState(self, StackState())
        state.depth += 1
        if state.depth > 1:
            return None
        if state.pending is not None:  # left by a call that failed before it ran
            state.rest()
        call.working = state
        given = {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs
        state.pending = pending = self._prepare(call, state, self.adapter.opened(given))
        return (), self.adapter.closed(self._enter(state, pending, pending.groups[0]))

    def _prepare(self, call: Any, state: RootState, given: Mapping[str, Any]) -> Pending:
        """What is to be done in one call of the pipeline's: on which tokens, and for which samples."""
        run: Run = call.run
        self.adapter.check(given, run.setting)
        self._probe(state, given)
        batch = given[self.adapter.takes].shape[0]
        self._begin(run, given)
        if flipped := self._flips(call, run, batch):
            given = self.adapter.select(given, _other_half_first(given[self.adapter.takes]))
        whole = given
        rows, layout = run.share(batch)
        condition, skipped = None, NOBODY
        if run.prediction is not None and not self.reduce_only:
            condition = run.condition(rows, *self.adapter.conditioning(given))
            skipped = self._skipped(state, run, condition, given)
            if skipped.issuperset(rows):  # of a denoiser that has not run yet: the form of its answers is not known
                run.compute_all()
                skipped = NOBODY
        pair = None if run.guidance is None else self._pair(call, run, given, batch)
        forecast = Forecasted.of(rows, pair, skipped)
        index = forecast.index if forecast is not None else None if pair is None else pair.index
        if index is not None:
            rows = tuple(rows[row] for row in index)
            layout = run.layout_for(rows)
            given = self.adapter.select(given, torch.tensor(index, device=given[self.adapter.takes].device))
        short, positions = given, None
        if run.lays_out and self.number is not None:
            given = short = {**given, **control_scale(call, self.number)}
        if run.method is not None and not layout.all_fine:
            assert self._tokens is not None
            positions = run.shares.positions(layout, run.method)
            short = self._tokens.shorten(given, layout, layout.reduce(self._seen(run, given, rows)), positions)
        pending = Pending(run, layout, positions, short, None, (COMPUTED,), pair, forecast, flipped)
        if self.reduce_only:
            run.tally.controlled = True
            return pending
        run.tally.count_call(partial(self._costs.flops, whole), layout.batch, run)
        run.called(condition, rows)
        if index is not None:
            self._spare(pending, batch, len(rows))
        if run.policy is not None:
            self._decide(state, pending, given, rows)
        return pending

    def _begin(self, run: Run, given: Mapping[str, Any]) -> None:
        """The run sees a call, where it is of another batch than the last."""
        if not run.knows(given[self.adapter.takes].shape[0]):
            grid = run.grid or self.adapter.grid(given)
            batch, frames = given[self.adapter.takes].shape[0], self.adapter.frames(given)
            run.begin(grid, batch, lambda: self.adapter.latents(given, grid), frames)
            if run.method is not None:
                check_tokens(self.module, run.stages, grid, frames, given[self.adapter.takes])

    def _spare(self, pending: Pending, batch: int, computed: int) -> None:
        """Note what the samples of a call that are not computed would have cost: by a forecast, or by guidance."""
        tally, pair, forecast = pending.run.tally, pending.pair, pending.forecast
        each = self._costs.flops(pending.call) / computed
        if forecast is not None:
            tally.spare_by_forecast(forecast.dropped, each * forecast.dropped)
        if pair is not None and pair.index is not None:
            tally.spare(each * (batch - len(pair.index)))

    def _decide(self, state: RootState, pending: Pending, given: Mapping[str, Any], rows: tuple[int, ...]) -> None:
        """Find the branch that a call belongs to, and ask it for whom the blocks run."""
        run, policy = pending.run, pending.run.policy
        assert policy is not None
        branch = pending.branch = run.branch(self.module, rows, pending.layout, *self.adapter.conditioning(given))
        if policy.signal is not None:  # which may ask the embedding for it
            state.active = LayoutCall(pending.layout, pending.positions, pending.call, run.shares.tables, run.extent)
        pending.groups = branch.plan(
            run.situation(),
            lambda: self._signal(pending.call),
            lambda: self._seen(run, given, rows),
            compute=run.wants_text_attention,
        )

    def _seen(self, run: Run, given: Mapping[str, Any], rows: tuple[int, ...]) -> Tensor:
        """The canvas (b, C, H, W) that a call is about."""
        assert run.grid is not None
        return run.canvas.model_input(self.adapter.latents(given, run.grid), rows)

    def _pair(self, call: Any, run: Run, given: Mapping[str, Any], batch: int) -> Pair | None:
        """How guidance is to be carried out in a call; None where all is as the pipeline says."""
        paired = self._form == "calls" or self._stacked(call, run, batch)
        if self.reduce_only and (self._form == "calls" or not paired or any(run.guided(batch // 2))):
            return None
        scale = guidance_scale(call, self.module)
        return pair_of(run, self._form, given, batch, paired, scale, self.adapter.no_guidance)

    def _stacked(self, call: Any, run: Run, batch: int) -> bool:
        """True for a call on both branches, False for one on samples that are not guided, or not any more."""
        assert run.layout is not None
        return bool(call.pipe.do_classifier_free_guidance) and not (run.index and batch == run.layout.batch)

    def _flips(self, call: Any, run: Run, batch: int) -> bool:
        """Whether a call's halves are to be exchanged, for what carries out guidance has those without prompt first."""
        if self.adapter.guidance != "stack, prompt first" or run.guidance is None or self.reduce_only:
            return False
        return self._stacked(call, run, batch)

    def _signals(self, state: RootState, run: Run, given: Mapping[str, Any]) -> Signals:
        """The signals "modulated" and "canvas" of the pipeline's own samples, the last copy of them in a call."""
        assert run.layout is not None
        batch, layout = len(given[self.adapter.takes]), run.layout
        last = torch.arange(batch - layout.batch, batch, device=given[self.adapter.takes].device)
        own = given if batch == layout.batch else self.adapter.select(given, last)

        def canvas() -> Tensor:
            return self._seen(run, own, tuple(range(layout.batch)))

        def modulated() -> Tensor:
            short, positions = own, None
            if run.method is not None and not layout.all_fine:
                assert self._tokens is not None
                positions = run.shares.positions(layout, run.method)
                short = self._tokens.shorten(own, layout, layout.reduce(canvas()), positions)
            state.active = LayoutCall(layout, positions, short, run.shares.tables, run.extent)  # embedding may ask
            return self._signal(short)

        return modulated, canvas

    def _skipped(
        self, state: RootState, run: Run, condition: tuple[int, int] | None, given: Mapping[str, Any]
    ) -> frozenset[int]:
        """The samples that are forecast in this step. condition: see `Run.condition`."""
        return run.decide(condition, lambda: self._signals(state, run, given))

    def _forecast(self, call: Any, state: RootState, run: Run, given: Mapping[str, Any]) -> Tensor | None:
        """The prediction of a call whose samples are all forecast; None for any other."""
        if run.prediction is None or run.prediction.chooser is None or state.known.conditional is None:
            return None
        hidden = given[self.adapter.takes]
        self._begin(run, given)
        rows, _ = run.share(len(hidden))
        working, call.working, state.depth = call.working, state, 1  # what embeds a signal runs for this call
        try:
            condition = run.condition(rows, *self.adapter.conditioning(given))
            skipped = self._skipped(state, run, condition, given)
        finally:
            state.rest()
            call.working, state.depth = working, 0
        if not skipped.issuperset(rows):
            return None
        self.adapter.check(given, run.setting)
        run.tally.count_call(partial(self._costs.flops, given), 0, run)
        run.tally.spare_by_forecast(len(rows), state.known.flops / max(state.known.rows, 1) * len(rows))
        return stood_in(self.adapter, run, hidden, rows)

    def answer(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a call that needs none: a forecast, or u where no sample is guided. Nothing runs for it.

        None for any other call.
        """
        state, run = call.states.get(self), call.run
        if state is None or state.depth or run is None:
            return None
        given = self.adapter.opened({**dict(zip(self._names, args, strict=False)), **kwargs})
        answer = self._forecast(call, state, run, given)
        if answer is None and run.guidance is not None and run.calls:
            answer = known_answer(run, self._form, state.known, given)
            if answer is not None:
                run.tally.count_call(partial(self._costs.flops, given), 0, run)
                run.tally.spare(state.known.flops)
        return None if answer is None else state.known.instead(self.adapter.closed_prediction(answer))

    def _signal(self, call: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal, with the weights that it takes where offload hooks may keep them elsewhere."""
        assert self._blocks is not None
        with at_hand(self.module, self._blocks.blocks(self.module)[0]):
            signal = self._blocks.modulated_input(self.module, call)
        ranks = None if self._probed is None else ranks_of(self.module)  # what a probe finds, it finds in a rank's part
        return signal if ranks is None else ranks.whole(signal, -1)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = current()
        if call is None or (state := call.states.get(self)) is None or not state.depth:
            return None
        state.depth -= 1
        if state.depth:
            return None
        pending = state.pending
        try:
            if output is None or pending is None:
                return None
            result = self._finish(module, state, pending, output)
            if self.handle.answers and not self.reduce_only and pending.run.calls == 1:
                known = state.known
                whole = output if result is None else result
                known.step = pending.run.index
                known.conditional = with_prediction(whole, self.adapter.opened_prediction(whole[0]))
                known.flops, known.rows = self._costs.flops(pending.call), pending.layout.batch
            return result
        finally:
            state.rest()
            call.working = None

    def _finish(self, module: nn.Module, state: RootState, pending: Pending, output: Any) -> Any:
        """Call the model for the remaining groups; returns the full prediction, None if it is the output as it is."""
        groups, pair, run = pending.groups, pending.pair, pending.run
        if self.reduce_only:
            return None
        parts = [self.adapter.opened_prediction(output[0])]
        self._keep(state, pending, groups[0], parts[0])
        whole_call = pair is None and pending.forecast is None and not pending.flipped
        if len(groups) == 1 and pending.positions is None and whole_call:
            return None
        state.depth, state.nested = 1, True
        try:
            for group in groups[1:]:
                arguments = self.adapter.closed(self._enter(state, pending, group))
                parts.append(self.adapter.opened_prediction(module(**arguments)[0]))
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
            prediction = prediction[_other_half_first(prediction)]
        return with_prediction(output, self.adapter.closed_prediction(prediction))

    def _enter(self, state: RootState, pending: Pending, group: Group) -> Mapping[str, Any]:
        """Make ready for the call of one group of samples; returns its arguments."""
        run, branch, call, fresh = pending.run, pending.branch, pending.call, None
        if group.samples is not None:
            call = self.adapter.select(call, group.samples.rows)
        if not self.reduce_only:
            flops = uncached = self._cost(pending, call)
            if branch is not None:
                call, flops, fresh = self._enter_blocks(state, branch, pending, group, call, flops)
            run.tally.add_flops(flops, max(0.0, uncached - flops))
        state.active = LayoutCall(
            pending.layout, pending.positions, call, run.shares.tables, run.extent, group.rows, fresh,
            run.method is not None,
        )  # fmt: skip
        return call

    def _enter_blocks(
        self, state: RootState, branch: Branch, pending: Pending, group: Group, call: Mapping[str, Any], full: float
    ) -> tuple[Mapping[str, Any], float, Rows | None]:
        """Say what the blocks do in a group's call; returns its arguments, its FLOPs, and the tokens that run alone.

        full: its FLOPs if all is computed.
        """
        if branch.layers is not None:
            return call, self._enter_layers(state, branch.layers, pending, group, call), None
        rows = None
        if branch.memory is not None:
            rows = branch.rows(group, pending.layout, self._text(call))
        if group.residual is None:
            state.stack.run(rows)
            return call, full, None
        if group.tokens is None:
            assert self._blocks is not None
            state.stack.skip(group.residual)
            call = self._blocks.without_control(call)
            return call, self._cost(pending, call, skipped=True), None
        assert self._layers is not None
        state.stack.run(rows, group.residual)
        call = self._layers.sparse_control(call, group.tokens)
        return call, self._layers.sparse_flops(call, group.tokens.shape[1]), rows

    def _cost(self, pending: Pending, call: Mapping[str, Any], skipped: bool = False) -> float:
        """FLOPs of a group's call in full, or with all blocks passed over; counted once for all steps of a branch."""
        count = self._costs.skipped_flops if skipped else self._costs.flops
        if pending.branch is None:
            return count(call)
        key, costs = (skipped, call[self.adapter.takes].shape), pending.branch.costs
        if (known := costs.get(key)) is None:
            known = costs[key] = count(call)
        return known

    def _enter_layers(
        self, state: RootState, cache: LayerCache, pending: Pending, group: Group, call: Mapping[str, Any]
    ) -> float:
        """Say what each layer does in a group's call; returns its FLOPs."""
        assert self.stack is not None and self.stack.layers is not None and pending.branch is not None
        assert self._layers is not None
        cache.check(pending.layout)
        layers, policy, text = self.stack.layers, pending.branch.policy, self._text(call)
        state.stack.run()
        if group.residual is None:
            state.stack.mode = layers.record(cache, text, group.rows, policy.order + 1)
            return self._costs.flops(call)
        if policy.caches == "layers":
            state.stack.mode = layers.forecast(cache, *pending.branch.forecast_layer(), text, group.rows)
            return self._layers.replay_flops(call)
        image, context = pending.branch.refresh(group, text, layers.singles)
        state.stack.mode = layers.replay(cache, text, group.rows, image, context)
        counts = (() if fresh is None or fresh.counts is None else fresh.counts for fresh in (image, context))
        return self._layers.replay_flops(call, *counts)

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
        branch.record(group, state.stack.take(), pending.run.situation())


def _other_half_first(rows: Tensor) -> Tensor:
    """(B,) int64: the rows of the second half, then those of the first."""
    return torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)


def _assemble(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """The predictions of a call's groups, back in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    for part, group in zip(parts, groups, strict=True):
        whole[group.rows] = part
    return whole
