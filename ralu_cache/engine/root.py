"""The native root hook pair: short token sets into the denoiser, full canvases out of it.

Native torch hooks, because whatever replaces `.forward` is lost when offload hooks come or go. What a call of the
pipeline needs while a denoiser runs hangs on that call, so several may run through one denoiser at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.protocols import Adapter, Blocks, Probed, TextAttention
from ralu_cache.engine.answers import Answers, answering
from ralu_cache.engine.arguments import control_scale, guidance_scale
from ralu_cache.engine.blocks import BlockStack, StackState
from ralu_cache.engine.context import current
from ralu_cache.engine.disguise import occupy, vacate
from ralu_cache.engine.forecasted import Forecasted
from ralu_cache.engine.groups import Groups, other_half_first
from ralu_cache.engine.guided import Pair, pair_of
from ralu_cache.engine.probing import find_stack
from ralu_cache.engine.reading import CallReader
from ralu_cache.engine.run import Run, Terms
from ralu_cache.engine.shares import Rows
from ralu_cache.engine.states import Pending, RootState
from ralu_cache.engine.verdict import COMPUTED
from ralu_cache.temporal.policy import Policy

NOBODY: frozenset[int] = frozenset()


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
        self._reader, self._groups = CallReader(module, adapter), Groups(module, adapter)
        self._form = "calls" if adapter.guidance == "calls" else "stack"
        self._prompt_first = adapter.guidance == "stack, prompt first"
        self._answers = None
        if handle.answers and not self.reduce_only:
            self._answers = Answers(self._reader, self._groups.costs, self._form)
        self._probed = adapter if isinstance(adapter, Probed) else None
        self._probing = threading.Lock()
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
        if self._reader.tokens is not None:
            self._handles += self._reader.tokens.install_positions(self.module, self.active)
        if self._answers is not None:
            occupy(self.module, self.handle, answering)
        if not self.reduce_only and self.handle.wants_text_attention:
            assert isinstance(self.adapter, TextAttention)
            wanted, keep = self._wants_text_attention, self._keep_text_attention
            self._handles += self.adapter.install_text_attention(self.module, wanted, keep)
        self._landmarks = landmarks

    def _reach_blocks(self) -> None:
        assert isinstance(self.adapter, Blocks) and self.policy is not None
        self.stack = BlockStack(self.module, self.adapter, self.policy, self.handle, self.working)

    def _probe(self, state: RootState, given: Mapping[str, Any]) -> None:
        """Find the blocks of a denoiser that no adapter knows, by a call of it: once, for all calls to come."""
        assert self._probed is not None
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
        state.pending = pending = self._prepare(call, state, self._reader.opened(args, kwargs))
        if self.reduce_only:
            short = pending.call
            state.active = pending.run.placed(pending.layout, pending.positions, short)
        else:
            short = self._groups.enter(state, pending, pending.groups[0], self.stack)
        return (), self.adapter.closed(short)

    def _prepare(self, call: Any, state: RootState, given: Mapping[str, Any]) -> Pending:
        """What is to be done in one call of the pipeline's: on which tokens, and for which samples."""
        run = call.run
        terms = run.terms(self.module)
        self.adapter.check(given, terms.setting)
        if self._probed is not None:
            self._probe(state, given)
        batch = self._reader.begin(run, given)
        if run.whole_calls and not self.reduce_only:
            rows, layout = run.share(batch)
            pending = Pending(run, layout, None, given, None, (COMPUTED,))
            run.tally.count_call(self._groups.costs, given, layout.batch, run)
        else:
            pending, given, rows = self._reduced(call, state, given, batch)
        if terms.policy is not None and not self.reduce_only:
            self._decide(state, pending, given, rows, terms)
        return pending

    def _reduced(
        self, call: Any, state: RootState, given: Mapping[str, Any], batch: int
    ) -> tuple[Pending, Mapping[str, Any], Rows]:
        """A call on the run's tokens, for the samples that are neither forecast nor left out by guidance; before it is
        on those tokens, and its samples."""
        run, reader = call.run, self._reader
        if flipped := self._prompt_first and self._flips(call, run, batch):
            given = self.adapter.select(given, other_half_first(reader.latents(given)))
        whole = given
        rows, layout = run.share(batch)
        condition, skipped = None, NOBODY
        if run.prediction is not None and not self.reduce_only:
            condition, skipped = reader.skipped(state, run, given, rows)
            if skipped.issuperset(rows):  # of a denoiser that has not run yet: the form of its answers is not known
                run.compute_all()
                skipped = NOBODY
        pair = None if run.guidance is None else self._pair(call, run, given, batch)
        forecast = Forecasted.of(rows, pair, skipped)
        index = forecast.index if forecast is not None else None if pair is None else pair.index
        if index is not None:
            rows = tuple(rows[row] for row in index)
            layout = run.layout_for(rows)
            given = reader.some(given, index)
        if self.number is not None and run.lays_out:
            given = {**given, **control_scale(call, self.number)}
        short, positions = reader.on_tokens(run, layout, given, rows)
        pending = Pending(run, layout, positions, short, None, (COMPUTED,), pair, forecast, flipped)
        if self.reduce_only:
            run.tally.controlled = True
            return pending, given, rows
        run.tally.count_call(self._groups.costs, whole, layout.batch, run)
        if condition is not None:
            run.called(condition, rows)
        if index is not None:
            self._spare(pending, batch, len(rows))
        return pending, given, rows

    def _spare(self, pending: Pending, batch: int, computed: int) -> None:
        """Note what the samples of a call that are not computed would have cost: by a forecast, or by guidance."""
        tally, pair, forecast = pending.run.tally, pending.pair, pending.forecast
        each = self._groups.costs.flops(pending.call) / computed
        if forecast is not None:
            tally.spare_by_forecast(forecast.dropped, each * forecast.dropped)
        if pair is not None and pair.index is not None:
            tally.spare(each * (batch - len(pair.index)))

    def _decide(
        self, state: RootState, pending: Pending, given: Mapping[str, Any], rows: Rows, terms: Terms
    ) -> None:
        """Find the branch that a call belongs to, and ask it for whom the blocks run."""
        run, policy, situation = pending.run, terms.policy, terms.situations[pending.run.index]
        assert policy is not None
        told = self.adapter.conditioning(given)
        branch = run.branch(self.module, policy, rows, pending.layout, *told)
        pending.branch, pending.situation = branch, situation
        if terms.looks:  # which may ask the embedding for it
            state.active = run.placed(pending.layout, pending.positions, pending.call)
        pending.groups = branch.plan(
            situation,
            lambda: self._reader.modulated(pending.call),
            lambda: self._reader.image(run, given, rows),
            compute=run.method is not None and run.wants_text_attention,
        )

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
        if run.guidance is None or self.reduce_only:
            return False
        return self._stacked(call, run, batch)

    def answer(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `Answers.to`; None while the denoiser runs, and before it has run."""
        state = call.states.get(self)
        if state is None or state.depth or call.run is None or self._answers is None:
            return None
        return self._answers.to(call, state, args, kwargs)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = current()
        if call is None or (state := call.states.get(self)) is None or not state.depth:
            return None
        state.depth -= 1
        if state.depth:
            return None
        pending = state.pending
        try:
            if output is None or pending is None or self.reduce_only:
                return None
            result = self._groups.finish(state, pending, output, self.stack)
            if self._answers is not None:
                self._answers.note(state, pending, output if result is None else result)
            return result
        finally:
            state.rest()
            call.working = None
