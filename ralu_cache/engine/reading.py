"""What a denoiser call tells the run: on which samples and tokens it is, and the signals that are looked at in it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.protocols import Adapter, Blocks, Probed, Tokens
from ralu_cache.adapters.ranks import ranks_of
from ralu_cache.adapters.weights import at_hand
from ralu_cache.engine.ranked import check_tokens
from ralu_cache.engine.run import Run, Signals
from ralu_cache.engine.states import RootState
from ralu_cache.plane.canvas import TokenLayout


class CallReader:
    """Reads the calls of one denoiser (or ControlNet). given, call: a call's arguments as the adapter has them."""

    def __init__(self, module: nn.Module, adapter: Adapter) -> None:
        self.module, self.adapter = module, adapter
        self.tokens = adapter if isinstance(adapter, Tokens) else None
        self._blocks = adapter if isinstance(adapter, Blocks) else None
        self._probed = isinstance(adapter, Probed)
        self._names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]

    def opened(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of the model's own call."""
        return self.adapter.opened({**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs)

    def latents(self, given: Mapping[str, Any]) -> Tensor:
        """The argument that holds them, (B, ...)."""
        found: Tensor = given[self.adapter.takes]
        return found

    def begin(self, run: Run, given: Mapping[str, Any]) -> int:
        """The run sees a call, where it is of another batch than the last. Returns the call's."""
        latents: Tensor = given[self.adapter.takes]
        batch = latents.shape[0]
        if run.layout is None or batch != run.batch.rows:
            grid, frames = run.grid or self.adapter.grid(given), self.adapter.frames(given)
            run.begin(grid, batch, latents.device, lambda: self.adapter.latents(given, grid), frames)
            if run.method is not None:
                check_tokens(self.module, run.stages, grid, frames, latents)
        return batch

    def some(self, given: Mapping[str, Any], rows: Sequence[int]) -> Mapping[str, Any]:
        """The same call on these of its rows alone."""
        return self.adapter.select(given, torch.tensor(rows, device=self.latents(given).device))

    def image(self, run: Run, given: Mapping[str, Any], rows: Sequence[int]) -> Tensor:
        """The canvas (b, C, H, W) that a call is about. rows: the sample of each."""
        assert run.grid is not None
        return run.canvas.model_input(self.adapter.latents(given, run.grid), rows)

    def on_tokens(
        self, run: Run, layout: TokenLayout, given: Mapping[str, Any], rows: Sequence[int]
    ) -> tuple[Mapping[str, Any], Tensor | None]:
        """A call on the tokens of its layout, and their positions (B, n, 2); the call itself and None on all."""
        if run.method is None or layout.all_fine:
            return given, None
        assert self.tokens is not None
        positions = run.shares.positions(layout, run.method)
        return self.tokens.shorten(given, layout, layout.reduce(self.image(run, given, rows)), positions), positions

    def modulated(self, call: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal, with the weights that it takes where offload hooks may keep them elsewhere."""
        assert self._blocks is not None
        with at_hand(self.module, self._blocks.blocks(self.module)[0]):
            signal = self._blocks.modulated_input(self.module, call)
        ranks = ranks_of(self.module) if self._probed else None  # its signal is a part
        return signal if ranks is None else ranks.whole(signal, -1)

    def signals(self, state: RootState, run: Run, given: Mapping[str, Any]) -> Signals:
        """The signals "modulated" and "canvas" of the pipeline's own samples, the last copy of them in a call."""
        assert run.layout is not None
        batch, layout = len(self.latents(given)), run.layout
        last = torch.arange(batch - layout.batch, batch, device=self.latents(given).device)  # no copy, which waits
        own = given if batch == layout.batch else self.adapter.select(given, last)
        rows = tuple(range(layout.batch))

        def canvas() -> Tensor:
            return self.image(run, own, rows)

        def modulated() -> Tensor:
            short, positions = self.on_tokens(run, layout, own, rows)
            state.active = run.placed(layout, positions, short)  # embedding may ask
            return self.modulated(short)

        return modulated, canvas

    def skipped(
        self, state: RootState, run: Run, given: Mapping[str, Any], rows: Sequence[int]
    ) -> tuple[tuple[int, int] | None, frozenset[int]]:
        """What a call is conditioned on (see `Run.condition`), and the samples that are forecast in this step."""
        condition = run.condition(rows, *self.adapter.conditioning(given))
        return condition, run.decide(condition, lambda: self.signals(state, run, given))
