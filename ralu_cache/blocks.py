"""The denoiser's stack of blocks: it runs as stock, or is left out while a cached residual takes its place.

Left out is meant literally: for such a call the stock loops over the blocks find none. A block that was told to pass
its input through would take the decision in its own, perhaps compiled code, and be compiled once for each answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.base import Adapter, Processors, Removable
from ralu_cache.attention import Rows
from ralu_cache.layers import LayerStack
from ralu_cache.temporal.base import Policy
from ralu_cache.token_map import put, take


class _PassedOver(nn.ModuleList):
    """A list whose modules are all there, to be moved, saved or counted, but in which a loop finds none."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(())


class BlockStack:
    """All blocks of a transformer between its embedding and its head.

    `run()` before a call lets the blocks run; after it, `take()` is their residual (output minus input of the whole
    stack, image tokens, (B, n, d)). `skip(residual)` makes the next call add that residual instead. Under a policy
    that `caches` "rows" a call may bring some image tokens alone: `run(rows)` runs those of `rows`, adds `stale`, a
    residual of all tokens, to the others, and `take()` is the residual (B, m, d) of those that ran. Under one that
    caches layers, `layers` says what they do while the blocks run.
    """

    def __init__(self, transformer: nn.Module, adapter: Adapter, policy: Policy) -> None:
        self.adapter = adapter
        self.residual: Tensor | None = None
        self.rows: Rows | None = None
        self._stale: Tensor | None = None
        self._recording = False
        self._entered: Tensor | None = None
        self._left: Tensor | None = None
        self._blocks = adapter.blocks(transformer)
        self._lists = _lists_of(self._blocks, transformer)
        self._handles: list[Removable] = []
        self._processors: Processors | None = None
        self.layers: LayerStack | None = None
        if policy.caches == "rows":  # these may refuse, so they come first
            self._processors = adapter.install_rows(transformer, lambda: self.rows)
            self._handles.append(self._processors)
        elif policy.caches != "stack":
            self.layers = LayerStack(transformer, adapter, policy.measures, policy.caches == "layers+rows")
            self._handles.append(self.layers)
        self._handles += [
            self._blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True),
            adapter.head(transformer).register_forward_pre_hook(self._leave),
        ]

    def remove(self) -> None:
        self.rest()
        for handle in self._handles:
            handle.remove()

    def run(self, rows: Rows | None = None, stale: Tensor | None = None) -> None:
        """rows: what to remember keys and values for, None for nothing; stale: needed if it has some tokens alone.

        Raises ValueError if rows are given and another attention processor than ours has been set since.
        """
        self.rest()
        if rows is not None and self._processors is not None:
            self._processors.check()
        self.rows, self._stale, self._recording = rows, stale, True

    def skip(self, residual: Tensor) -> None:
        """Until `rest`, the model goes through no block, and its head gets `residual` on top of its input."""
        self.rest()
        self.residual = residual
        for blocks in self._lists:
            blocks.__class__ = _PassedOver

    def take(self) -> Tensor:
        """The residual of the call that just ran, of the tokens that ran."""
        assert self._entered is not None and self._left is not None
        entered = self._entered if self.tokens is None else take(self._entered, self.tokens)
        residual = self._left - entered
        self.rest()
        return residual

    @property
    def tokens(self) -> Tensor | None:
        """(k, m) int64: the image tokens that run alone; None for all."""
        return None if self.rows is None else self.rows.tokens

    def rest(self) -> None:
        """Be a stock stack, and hold nothing."""
        for blocks in self._lists:
            blocks.__class__ = nn.ModuleList
        self.residual = self.rows = self._stale = self._entered = self._left = None
        if self.layers is not None:
            self.layers.rest()
        self._recording = False

    @torch.compiler.disable
    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._recording:
            return None
        self._entered = self.adapter.block_input(args, kwargs)
        if self.tokens is None:
            return None
        return self.adapter.with_block_input(args, kwargs, take(self._entered, self.tokens))

    def _leave(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.residual is not None:
            return (args[0] + self.residual.to(args[0].dtype), *args[1:])
        if not self._recording:
            return None
        assert self._entered is not None
        self._left = args[0].to(self._entered.dtype)  # Wan's head is given what the blocks made in float32
        if self.tokens is None:
            return None
        assert self._stale is not None
        whole = self._entered + self._stale.to(self._entered.dtype)
        return (put(whole, self.tokens, self._left).to(args[0].dtype), *args[1:])


def _lists_of(blocks: list[nn.Module], transformer: nn.Module) -> list[nn.ModuleList]:
    """The lists that hold the blocks and nothing else. Raises ValueError for blocks that stand elsewhere."""
    ids = {id(block) for block in blocks}
    lists = [m for m in transformer.modules() if type(m) is nn.ModuleList and m and {id(b) for b in m} <= ids]
    if {id(block) for held in lists for block in held} != ids:
        raise ValueError(
            f"temporal caching needs blocks that stand in ModuleLists of their own, which the forward of "
            f"{type(transformer).__name__} goes through; use temporal=None"
        )
    return lists
