"""The native root hook pair: short token sets into the denoiser, full canvases out of it.

Native torch hooks, because whatever replaces `.forward` is lost when offload hooks come or go. What a call of the
pipeline needs while a denoiser runs hangs on that call, so several may run through one denoiser at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.base import Adapter, Hook
from ralu_cache.adapters.weights import at_hand
from ralu_cache.engine.blocks import BlockStack, StackState
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.context import current
from ralu_cache.engine.disguise import occupy, vacate
from ralu_cache.engine.guided import Pair, answering, known_answer, pair_of, whole
from ralu_cache.engine.run import Run
from ralu_cache.engine.states import LayoutCall, Pending, RootState
from ralu_cache.engine.verdict import COMPUTED, Group
from ralu_cache.history.attention import Rows
from ralu_cache.history.layer_cache import LayerCache
from ralu_cache.temporal.policy import Policy


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
            self.stack = BlockStack(self.module, self.adapter, self.policy, self.handle, self.working)
        self._handles = [
            self.module.register_forward_pre_hook(Hook(self._before), with_kwargs=True),
            self.module.register_forward_hook(Hook(self._after), with_kwargs=True, always_call=True),
            *self.adapter.install_positions(self.module, self.active),
        ]
        if not self.reduce_only and self.handle.guidance is not None:
            occupy(self.module, self.handle, answering)
        if not self.reduce_only and self.handle.wants_text_attention:
            self._handles += self.adapter.install_text_attention(self.module, self._run)
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

    def _run(self) -> Run | None:
        return None if self.working() is None else current().run

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
        state.pending = pending = self._prepare(call, state, given)
        return (), dict(self._enter(state, pending, pending.groups[0]))

    def _prepare(self, call: Any, state: RootState, given: dict[str, Any]) -> Pending:
        """What is to be done in one call of the pipeline's: on which tokens, and for which samples."""
        run: Run = call.run
        self.adapter.check(given, run)
        whole, batch = given, given["hidden_states"].shape[0]
        if not run.knows(batch):
            grid = run.grid or self.adapter.grid(given)
            run.begin(grid, batch, lambda: self.adapter.latents(whole, grid), self.adapter.frames(given))
        rows, layout = run.share(batch)
        pair = None if run.guidance is None else self._pair(call, run, given, batch)
        if pair is not None and pair.index is not None:
            rows = tuple(rows[row] for row in pair.index)
            layout = run.layout_for(rows)
            given = self.adapter.rows(given, torch.tensor(pair.index, device=given["hidden_states"].device))
        short, positions = given, None
        if run.method is not None:
            if self.number is not None:
                given = short = {**given, **self.handle.control_scale(call, self.number)}
            if not layout.all_fine:
                positions = run.shares.positions(layout, run.method)
                tokens = layout.reduce(self._seen(run, given, rows))
                short = self.adapter.shorten(given, layout, tokens, positions)
        pending = Pending(run, layout, positions, short, None, (COMPUTED,), pair)
        if self.reduce_only:
            run.tally.controlled = True
        else:
            run.tally.count_call(partial(self.adapter.flops, whole), layout.batch, run)
            if pair is not None and pair.index is not None:
                run.tally.spare(self.adapter.flops(short) * (self.adapter.flops(whole) / self.adapter.flops(given) - 1))
            if run.policy is not None:
                self._decide(state, pending, given, rows)
        return pending

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
        form = self.adapter.guidance
        paired = form == "calls" or bool(call.pipe.do_classifier_free_guidance)
        if self.reduce_only and (form == "calls" or not paired or any(run.guided(batch // 2))):
            return None
        return pair_of(run, form, given, batch, paired, self.handle.guidance_scale(call, self.module))

    def answer(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a call that needs none: u where no sample is guided, or None. Nothing runs for it."""
        state, run = call.states.get(self), call.run
        if state is None or state.depth or run is None or run.guidance is None or not run.calls:
            return None
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if (answer := known_answer(run, self.adapter.guidance, state.known, given)) is None:
            return None
        run.tally.count_call(partial(self.adapter.flops, given), 0, run)
        run.tally.spare(state.known.flops)
        return state.known.instead(answer)

    def _signal(self, call: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal, with the weights that it takes where offload hooks may keep them elsewhere."""
        with at_hand(self.module, self.adapter.blocks(self.module)[0]):
            return self.adapter.modulated_input(self.module, call)

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
            if pending.run.guidance is not None and not self.reduce_only and pending.run.calls == 1:
                known = state.known
                known.step, known.conditional = pending.run.index, output if result is None else result
                known.flops = self.adapter.flops(pending.call)
            return result
        finally:
            state.rest()
            call.working = None

    def _finish(self, module: nn.Module, state: RootState, pending: Pending, output: Any) -> Any:
        """Call the model for the remaining groups; returns the full prediction, None if it is the output as it is."""
        groups, pair, run = pending.groups, pending.pair, pending.run
        self._keep(state, pending, groups[0], output[0])
        if self.reduce_only or (len(groups) == 1 and pending.positions is None and pair is None):
            return None
        parts = [output[0]]
        state.depth, state.nested = 1, True
        try:
            for group in groups[1:]:
                parts.append(module(**self._enter(state, pending, group))[0])
                self._keep(state, pending, group, parts[-1])
        finally:
            state.depth, state.nested = 0, False
        prediction = _assemble(parts, groups)
        if pending.positions is not None:
            prediction = self.adapter.lengthen(prediction, pending.layout)
        if pair is not None:
            prediction = whole(pair, run, state.known, prediction)
        return (prediction, *output[1:]) if isinstance(output, tuple) else type(output)(sample=prediction)

    def _enter(self, state: RootState, pending: Pending, group: Group) -> Mapping[str, Any]:
        """Make ready for the call of one group of samples; returns its arguments."""
        run, branch, call, fresh = pending.run, pending.branch, pending.call, None
        if group.samples is not None:
            call = self.adapter.rows(call, group.samples.rows)
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
            rows = branch.rows(group, pending.layout, self.adapter.size(call)[2])
        if group.residual is None:
            state.stack.run(rows)
            return call, full, None
        if group.tokens is None:
            state.stack.skip(group.residual)
            call = self.adapter.without_control(call)
            return call, self._cost(pending, call, skipped=True), None
        state.stack.run(rows, group.residual)
        call = self.adapter.sparse_control(call, group.tokens)
        return call, self.adapter.sparse_flops(call, group.tokens.shape[1]), rows

    def _cost(self, pending: Pending, call: Mapping[str, Any], skipped: bool = False) -> float:
        """FLOPs of a group's call in full, or with all blocks passed over; counted once for all steps of a branch."""
        count = self.adapter.skipped_flops if skipped else self.adapter.flops
        if pending.branch is None:
            return count(call)
        key, costs = (skipped, call["hidden_states"].shape), pending.branch.costs
        if (known := costs.get(key)) is None:
            known = costs[key] = count(call)
        return known

    def _enter_layers(
        self, state: RootState, cache: LayerCache, pending: Pending, group: Group, call: Mapping[str, Any]
    ) -> float:
        """Say what each layer does in a group's call; returns its FLOPs."""
        assert self.stack is not None and self.stack.layers is not None and pending.branch is not None
        cache.check(pending.layout)
        layers, policy, text = self.stack.layers, pending.branch.policy, self.adapter.size(call)[2]
        state.stack.run()
        if group.residual is None:
            state.stack.mode = layers.record(cache, text, group.rows, policy.order + 1)
            return self.adapter.flops(call)
        if policy.caches == "layers":
            state.stack.mode = layers.forecast(cache, *pending.branch.forecast_layer(), text, group.rows)
            return self.adapter.replay_flops(call)
        image, context = pending.branch.refresh(group, text, layers.singles)
        state.stack.mode = layers.replay(cache, text, group.rows, image, context)
        counts = (() if fresh is None or fresh.counts is None else fresh.counts for fresh in (image, context))
        return self.adapter.replay_flops(call, *counts)

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


def _assemble(parts: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """The predictions of a call's groups, back in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    for part, group in zip(parts, groups, strict=True):
        whole[group.rows] = part
    return whole
