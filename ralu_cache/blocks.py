"""The denoiser's stack of blocks: it runs as stock, or is passed over while a cached residual takes its place."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from ralu_cache.adapters.base import Adapter

_NAME = "ralu_cache_block"


class _Obey(ModelHook):
    """A block that passes its input through while the stack is skipped; the decision was taken at the root."""

    def __init__(self, stack: BlockStack) -> None:
        super().__init__()
        self.stack = stack

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.stack.residual is not None:
            return self.stack.adapter.pass_block(args, kwargs)
        return self.fn_ref.original_forward(*args, **kwargs)


class BlockStack:
    """All blocks of a transformer between its embedding and its head.

    `run()` before a call lets the blocks run; after it, `take()` is their residual (output minus input of the whole
    stack, image tokens, (B, n, d)). `skip(residual)` makes the next call add that residual instead.
    """

    def __init__(self, transformer: nn.Module, adapter: Adapter) -> None:
        self.adapter = adapter
        self.residual: Tensor | None = None
        self._recording = False
        self._entered: Tensor | None = None
        self._left: Tensor | None = None
        self._blocks = adapter.blocks(transformer)
        for block in self._blocks:
            HookRegistry.check_if_exists_or_initialize(block).register_hook(_Obey(self), _NAME)
        self._handles = [
            self._blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True),
            adapter.head(transformer).register_forward_pre_hook(self._leave),
        ]

    def remove(self) -> None:
        for block in self._blocks:
            HookRegistry.check_if_exists_or_initialize(block).remove_hook(_NAME, recurse=False)
        for handle in self._handles:
            handle.remove()

    def run(self) -> None:
        self.rest()
        self._recording = True

    def skip(self, residual: Tensor) -> None:
        self.rest()
        self.residual = residual

    def take(self) -> Tensor:
        """The residual of the call that just ran."""
        assert self._entered is not None and self._left is not None
        residual = self._left - self._entered
        self.rest()
        return residual

    def rest(self) -> None:
        """Be a stock stack, and hold nothing."""
        self.residual = self._entered = self._left = None
        self._recording = False

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording:
            self._entered = self.adapter.block_input(args, kwargs)

    def _leave(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.residual is not None:
            return (args[0] + self.residual.to(args[0].dtype), *args[1:])
        if self._recording:
            self._left = args[0]
        return None
