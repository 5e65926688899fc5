"""The native root hook pair: short token sets into the denoiser, full canvases out of it.

Native torch hooks, because whatever replaces `.forward` is lost when offload hooks come or go. What a call of the
pipeline needs while a denoiser runs hangs on that call, so several may run through one denoiser at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.protocols import Adapter, Blocks, Cost, Layers, LayoutCall, Setting, TextAttention, Tokens
from ralu_cache.adapters.weights import at_hand
from ralu_cache.engine.arguments import control_scale, guidance_scale
from ralu_cache.engine.blocks import BlockStack, StackState
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.context import current
from ralu_cache.engine.disguise import occupy, vacate
from ralu_cache.engine.forecasted import Forecasted, stood_in
from ralu_cache.engine.guided import Known, Pair, answering, pair_of, unconditional, whole
from ralu_cache.engine.run import Run, Signals
from ralu_cache.engine.verdict import Group
from ralu_cache.history.layer_cache import LayerCache
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal.base import Policy


@dataclass(frozen=True)
class Pending:
    """One denoiser call while its groups of samples, computed or reused, run one after the other."""

    run: Run
    layout: TokenLayout
    positions: Tensor | None
    call: Mapping[str, Any]
    branch: Branch | None
    groups: Sequence[Group]
    pair: Pair | None = None
    forecast: Forecasted | None = None


@dataclass
class RootState:
    """What one denoiser is doing for one pipeline call.

    depth: 1 while it runs for the pipeline; a call of it within that is either ours (`nested`) or a stranger's.
    """

    root: RootHook
    stack: StackState
    depth: int = 0
    nested: bool = False
    active: LayoutCall | None = None
    pending: Pending | None = None
    known: Known = field(default_factory=Known)

    @property
    def ours(self) -> bool:
        """True if what runs now, runs for the pipeline's call."""
        return self.depth == (2 if self.nested else 1)

    def rest(self) -> None:
        self.active = self.pending = None
        self.nested = False
        self.stack.rest()


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
        self._cost: Cost = adapter if isinstance(adapter, Cost) else Uncounted()
        self.reduce_only, self.number = number is not None, number
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
        if self.policy is not None:
            assert self._blocks is not None
            self.stack = BlockStack(self.module, self._blocks, self.policy, self.handle, self.working)
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
        state.rest()
        call.working = state
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        run: Run = call.run
        self.adapter.check(given, self._setting(run))
        grid = run.grid or self.adapter.grid(given)
        batch, whole_call = len(given["hidden_states"]), given
        run.begin(grid, batch, lambda: self.adapter.latents(whole_call, grid), self.adapter.frames(given))
        rows = run.rows(batch)
        full = 0.0 if self.reduce_only else self._cost.flops(given)
        condition = None if self.reduce_only else run.condition(rows, *self.adapter.conditioning(given))
        skipped = self._skipped(state, run, condition, given)
        if skipped.issuperset(rows):  # of a denoiser that has not run yet, so the form of its answers is not known
            run.compute_all()
            skipped = frozenset()
        pair = self._pair(call, run, given, batch)
        forecast = Forecasted.of(rows, pair, skipped)
        index = pair.index if forecast is None and pair is not None else None if forecast is None else forecast.index
        if index is not None:
            rows = tuple(rows[row] for row in index)
            given = self.adapter.select(given, torch.tensor(index, device=given["hidden_states"].device))
        layout = run.layout_for(rows)
        short, positions = given, None

        def seen() -> Tensor:
            return run.model_input(self.adapter.latents(given, grid), rows)

        if run.lays_out and self.number is not None:
            given = short = {**given, **control_scale(call, self.number)}
        if run.method is not None and not layout.all_fine:
            assert self._tokens is not None
            positions = run.positions(layout)
            short = self._tokens.shorten(given, layout, layout.reduce(seen()), positions)
        branch, groups = None, [Group()]
        if not self.reduce_only:
            run.count_call(full, layout.batch)
            run.called(condition, rows)
            if forecast is not None:
                run.spare_by_forecast(forecast.dropped, self._cost.flops(short) / len(rows) * forecast.dropped)
            if pair is not None and pair.index is not None:
                left_out = batch - len(pair.index)
                run.spare(self._cost.flops(short) / len(rows) * left_out)
            if run.policy is not None:
                branch = run.branch(module, rows, *self.adapter.conditioning(given))
                if run.policy.signal is not None:  # which may ask the embedding for it
                    state.active = LayoutCall(layout, positions, short, run.tables, run.extent)
                groups = branch.plan(
                    run.situation(), lambda: self._signal(short), seen, compute=run.wants_text_attention
                )
        state.pending = Pending(run, layout, positions, short, branch, groups, pair, forecast)
        return (), dict(self._enter(state, state.pending, groups[0]))

    def _pair(self, call: Any, run: Run, given: Mapping[str, Any], batch: int) -> Pair | None:
        """How guidance is to be carried out in a call; None where all is as the pipeline says."""
        guidance = run.guidance
        if guidance is None:
            return None
        paired = self.adapter.guidance == "calls" or bool(call.pipe.do_classifier_free_guidance)
        if self.reduce_only and (self.adapter.guidance == "calls" or not paired or any(run.guided(batch // 2))):
            return None
        scale = guidance_scale(call, self.module)
        return pair_of(guidance, run, self.adapter.guidance, given, batch, run.calls == 0, paired, scale)

    def _seen(self, state: RootState, run: Run, given: Mapping[str, Any]) -> Signals:
        """The signals "modulated" and "canvas" of the pipeline's own samples, the last copy of them in a call."""
        assert run.layout is not None and run.grid is not None
        batch, grid, layout = len(given["hidden_states"]), run.grid, run.layout
        last = torch.arange(batch - layout.batch, batch, device=given["hidden_states"].device)
        own = given if batch == layout.batch else self.adapter.select(given, last)

        def canvas() -> Tensor:
            return run.model_input(self.adapter.latents(own, grid), range(layout.batch))

        def modulated() -> Tensor:
            short, positions = own, None
            if run.method is not None and not layout.all_fine:
                positions = run.positions(layout)
                assert self._tokens is not None
                short = self._tokens.shorten(own, layout, layout.reduce(canvas()), positions)
            state.active = LayoutCall(layout, positions, short, run.tables, run.extent)  # embedding may ask for it
            return self._signal(short)

        return modulated, canvas

    def _skipped(
        self, state: RootState, run: Run, condition: tuple[int, int] | None, given: Mapping[str, Any]
    ) -> frozenset[int]:
        """The samples that are forecast in this step. condition: see `Run.condition`."""
        return run.decide(condition, lambda: self._seen(state, run, given))

    def _forecast(self, call: Any, state: RootState, run: Run, given: Mapping[str, Any]) -> Any:
        """The output of a call whose samples are all forecast; None for any other."""
        if run.prediction is None or run.prediction.chooser is None or state.known.conditional is None:
            return None
        hidden, grid = given["hidden_states"], run.grid
        assert grid is not None
        run.begin(grid, len(hidden), lambda: self.adapter.latents(given, grid), self.adapter.frames(given))
        rows = run.rows(len(hidden))
        working, call.working, state.depth = call.working, state, 1  # what embeds a signal runs for this call
        try:
            condition = run.condition(rows, *self.adapter.conditioning(given))
            skipped = self._skipped(state, run, condition, given)
        finally:
            state.rest()
            call.working, state.depth = working, 0
        if not skipped.issuperset(rows):
            return None
        self.adapter.check(given, self._setting(run))
        run.count_call(self._cost.flops(given), 0)
        run.spare_by_forecast(len(rows), state.known.flops / max(state.known.rows, 1) * len(rows))
        return state.known.instead(stood_in(self.adapter, run, hidden, rows))

    def answer(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a call that needs none: a forecast, or u where no sample is guided. Nothing runs for it.

        None for any other call.
        """
        state, run = call.states.get(self), call.run
        if state is None or state.depth or run is None:
            return None
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        forecast = self._forecast(call, state, run, given)
        if forecast is not None or run.guidance is None or not run.calls:
            return forecast
        conditional = state.known.prediction(run.index)
        if conditional is None:
            return None
        if self.adapter.guidance == "stack":  # a third prediction, of skip-layer guidance, which is guidance too
            if given.get("skip_layers") is None or any(run.guided(len(conditional) // 2)):
                return None
            answer = conditional[len(conditional) // 2 :]
        else:
            guided = run.guided(len(conditional))
            if any(guided):
                return None
            answer = unconditional(guided, run.guidance, run, state.known, conditional)
        run.count_call(self._cost.flops(given), 0)
        run.spare(state.known.flops)
        return state.known.instead(answer)

    @staticmethod
    def _setting(run: Run) -> Setting:
        caches = None if run.policy is None else run.policy.caches
        return Setting(run.method is not None, caches, len(run.places), run.believed_steps, run.leaves_out)

    def _signal(self, call: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal, with the weights that it takes where offload hooks may keep them elsewhere."""
        assert self._blocks is not None
        with at_hand(self.module, self._blocks.blocks(self.module)[0]):
            return self._blocks.modulated_input(self.module, call)

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
                known.step, known.conditional = pending.run.index, output if result is None else result
                known.flops, known.rows = self._cost.flops(pending.call), pending.layout.batch
            return result
        finally:
            state.rest()
            call.working = None

    def _finish(self, module: nn.Module, state: RootState, pending: Pending, output: Any) -> Any:
        """Call the model for the remaining groups; returns the full prediction, None if it is the output as it is."""
        parts = [self._leave(state, pending, pending.groups[0], output[0])]
        state.depth, state.nested = 1, True
        try:
            for group in pending.groups[1:]:
                parts.append(self._leave(state, pending, group, module(**self._enter(state, pending, group))[0]))
        finally:
            state.depth, state.nested = 0, False
        pair, run = pending.pair, pending.run
        whole_call = pair is None and pending.forecast is None
        if self.reduce_only or (len(parts) == 1 and pending.positions is None and whole_call):
            return None
        prediction = _assemble(parts, pending.groups)
        if pending.positions is not None:
            assert self._tokens is not None
            prediction = self._tokens.lengthen(prediction, pending.layout)
        if pending.forecast is not None:
            prediction = pending.forecast.filled(prediction, self.adapter, run, pending.call["hidden_states"])
        if pair is not None and run.guidance is not None:
            prediction = whole(pair, run.guidance, run, state.known, prediction)
        return (prediction, *output[1:]) if isinstance(output, tuple) else type(output)(sample=prediction)

    def _enter(self, state: RootState, pending: Pending, group: Group) -> Mapping[str, Any]:
        """Make ready for the call of one group of samples; returns its arguments."""
        call = pending.call if group.rows is None else self.adapter.select(pending.call, group.rows)
        run, branch = pending.run, pending.branch
        flops = uncached = 0.0 if self.reduce_only else self._cost.flops(call)
        fresh = None
        if branch is not None and self.stack is not None:
            rows = branch.rows(group, pending.layout, self._text(call))
            if branch.layers is not None:
                flops = self._enter_layers(state, branch.layers, pending, group, call)
            elif group.residual is None:
                state.stack.run(rows)
            elif group.tokens is None:
                assert self._blocks is not None
                call = self._blocks.without_control(call)
                flops = self._cost.skipped_flops(call)
                state.stack.skip(group.residual)
            else:
                assert self._layers is not None
                fresh = rows
                call = self._layers.sparse_control(call, group.tokens)
                flops = self._layers.sparse_flops(call, group.tokens.shape[1])
                state.stack.run(rows, group.residual)
        state.active = LayoutCall(
            pending.layout, pending.positions, call, run.tables, run.extent, group.rows, fresh, run.method is not None
        )
        if not self.reduce_only:
            run.add_flops(flops, max(0.0, uncached - flops))
        return call

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
            state.stack.mode = layers.record(cache, pending.run.sigma, text, group.rows, policy.order + 1)
            return self._cost.flops(call)
        if policy.caches == "layers":
            state.stack.mode = layers.forecast(cache, pending.branch.forecast_layer, text, group.rows)
            return self._layers.replay_flops(call)
        image, context = pending.branch.refresh(group, text, layers.singles)
        state.stack.mode = layers.replay(cache, text, group.rows, image, context)
        counts = (() if fresh is None or fresh.counts is None else fresh.counts for fresh in (image, context))
        return self._layers.replay_flops(call, *counts)

    def _text(self, call: Mapping[str, Any]) -> int:
        """Text tokens that run through the blocks, where layers are known; nobody else asks."""
        return 0 if self._layers is None else self._layers.size(call)[2]

    def _leave(self, state: RootState, pending: Pending, group: Group, prediction: Tensor) -> Tensor:
        """Keep what a group computed."""
        branch = pending.branch
        if branch is None or not group.computes:
            return prediction
        if prediction.requires_grad and branch.policy.caches != "stack":
            raise ValueError(
                f"gradients do not flow through what {type(branch.policy).__name__} keeps of layers or of some tokens; "
                "use a policy that reuses the residual of all blocks (teacache, seacache, taylorseer), or "
                "torch.no_grad()"
            )
        branch.record(group, state.stack.take(), pending.run.situation())
        return prediction


def _assemble(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """The predictions of a call's groups, back in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    for part, group in zip(parts, groups, strict=True):
        whole[group.rows] = part
    return whole
