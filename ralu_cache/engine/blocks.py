"""The denoiser's stack of blocks: it runs as stock, or is left out while a cached residual takes its place.

Left out is meant literally: for such a call the stock loops over the blocks find none. A block that was told to pass
its input through would take the decision in its own, perhaps compiled code, and be compiled once for each answer.
What is done in a call hangs on the call (`StackState`); the hooks here only ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.protocols import Blocks, Layers, Probed, Processors
from ralu_cache.adapters.ranks import Ranks, ranks_of
from ralu_cache.engine.context import current
from ralu_cache.engine.disguise import occupy, vacate
from ralu_cache.engine.layers import LayerStack, Mode
from ralu_cache.history.attention import Rows
from ralu_cache.history.residuals import narrowed
from ralu_cache.plane.token_map import put, take
from ralu_cache.temporal.policy import Policy


@dataclass
class StackState:
    """What the blocks do in one denoiser call, and what was seen of it.

    `run()` before a call lets the blocks run; after it, `take()` is their residual (output minus input of the whole
    stack, image tokens, (B, n, d)). `skip(residual)` makes the next call add that residual instead. A call may bring
    some image tokens alone: `run(rows, stale)` runs those of `rows`, adds `stale`, a residual of all tokens, to the
    others, and `take()` is the residual (B, m, d) of those that ran. `mode` says what layers do meanwhile.
    """

    residual: Tensor | None = None
    rows: Rows | None = None
    mode: Mode | None = None
    recording: bool = False
    stale: Tensor | None = None
    entered: Tensor | None = None
    left: Tensor | None = None
    ranks: Ranks | None = None  # that have the others of the tokens seen

    def run(self, rows: Rows | None = None, stale: Tensor | None = None) -> None:
        """rows: what to remember keys and values for, None for nothing; stale: needed if it has some tokens alone."""
        self._begin(None)
        self.rows, self.stale, self.recording = rows, stale, True

    def skip(self, residual: Tensor) -> None:
        """Until `rest`, the model goes through no block, and its head gets `residual` on top of its input."""
        self._begin(residual)

    def take(self) -> Tensor:
        """The residual of the call that just ran, of the tokens that ran."""
        assert self.entered is not None and self.left is not None
        entered = self.entered if self.tokens is None else take(self.entered, self.tokens)
        residual = self.left - entered
        if self.ranks is not None:
            residual = self.ranks.whole(residual)
        self.entered = self.left = self.ranks = None
        self.recording = False
        return residual

    @property
    def tokens(self) -> Tensor | None:
        """(k, m) int64: the image tokens that run alone; None for all."""
        return None if self.rows is None else self.rows.tokens

    def _begin(self, residual: Tensor | None) -> None:
        """Another call, perhaps of the next group of samples."""
        if self.mode is not None:
            self.mode.forget()
        self.residual, self.mode, self.rows, self.stale, self.recording = residual, None, None, None, False

    def rest(self) -> None:
        """Be a stock stack, and hold nothing."""
        self._begin(None)
        self.entered = self.left = self.ranks = None


class BlockStack:
    """The hooks of all blocks of a transformer between its embedding and its head, for one handle.

    working: the state of the denoiser while it runs for a call of that handle. Raises ValueError for blocks that the
    policy cannot reach into.
    """

    def __init__(
        self,
        transformer: nn.Module,
        adapter: Blocks,
        policy: Policy,
        user: object,
        working: Callable[[], Any],
    ) -> None:
        self.adapter, self._working, self._user = adapter, working, user
        self._transformer = transformer
        self._probed = isinstance(adapter, Probed)  # asked once: a protocol takes its time
        blocks = adapter.blocks(transformer)
        self._lists = _lists_of(blocks, transformer)
        self._handles: list[Any] = []
        self._sparse: Layers | None = None
        self._processors: Processors | None = None
        self.layers: LayerStack | None = None
        if policy.caches == "rows":  # these may refuse, so they come first
            assert isinstance(adapter, Layers)
            self._sparse = adapter
            self._processors = adapter.install_processors(transformer, user, _rows)
        elif policy.caches != "stack":
            assert isinstance(adapter, Layers)
            self.layers = LayerStack(transformer, adapter, user, policy.measures, policy.caches == "layers+rows")
        for held in self._lists:
            occupy(held, user, _passed_over)
        self._handles = [
            blocks[0].register_forward_pre_hook(Hook(self._enter), with_kwargs=True),
            adapter.head(transformer).register_forward_pre_hook(Hook(self._leave)),
        ]

    def refresh(self) -> None:
        """Reach into the layers that are there now. Raises ValueError where that can't be."""
        if self._processors is not None:
            self._processors.refresh()
        if self.layers is not None:
            self.layers.refresh()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for held in self._lists:
            vacate(held, self._user)
        if self._processors is not None:
            self._processors.remove()
        if self.layers is not None:
            self.layers.remove()

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = self._working()
        if state is None or not state.stack.recording:
            return None
        stack: StackState = state.stack
        given = self.adapter.block_input(args, kwargs)
        image = given.shape[1] if state.active is None else state.active.layout.tokens
        _, stack.entered, _ = self.adapter.image_tokens(given, image)
        if stack.tokens is None:
            return None
        assert self._sparse is not None
        return self._sparse.with_block_input(args, kwargs, take(stack.entered, stack.tokens))

    def _leave(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        state = self._working()
        if state is None:
            return None
        stack: StackState = state.stack
        ranks = ranks_of(self._transformer)
        if stack.residual is not None:
            return (self._stood_in(args[0], stack.residual, ranks), *args[1:])
        if not stack.recording:
            return None
        assert stack.entered is not None
        stack.ranks = None if self._probed else ranks
        given = stack.entered if ranks is None else self._divided(stack.entered, args[0], ranks)
        entered = self.adapter.head_part(given, args[0].shape[1])
        ran = args[0] if not entered.ndim else entered if stack.tokens is None else stack.tokens
        before, image, behind = self.adapter.image_tokens(args[0], ran.shape[1])
        # Wan's head is given what the blocks made in float32.
        left = image if image.dtype == entered.dtype else image.to(entered.dtype)
        if left.ndim > 3:  # frames, rows and columns of tokens
            left, entered = left.flatten(1, -2), entered.flatten(1, -2) if entered.ndim else entered
        stack.entered, stack.left = entered, left
        if stack.tokens is None:
            return None
        assert stack.stale is not None
        whole = stack.entered + stack.stale.to(stack.entered.dtype)
        return (_joined(before, put(whole, stack.tokens, stack.left).to(image.dtype), behind), *args[1:])

    def _divided(self, tokens: Tensor, part: Tensor, ranks: Ranks) -> Tensor:
        """What goes into the first block, or to the head where no block ran: this rank's part of it, if the blocks are
        where it is divided. part: what has that part's shape."""
        if not self.adapter.takes_all() or not ranks.is_own(part, tokens):
            return tokens
        return ranks.own(tokens)

    def _stood_in(self, hidden: Tensor, residual: Tensor, ranks: Ranks | None) -> Tensor:
        """What the head is given in place of `hidden`, which the blocks have not changed.

        ranks: those that residuals are gathered from, but of a probed denoiser: without stages each keeps its own.
        """
        if hidden.ndim > 3:  # frames, rows and columns of tokens
            residual = residual.reshape(hidden.shape)
        if ranks is not None and not self._probed:
            residual = ranks.own(residual)
        if self.adapter.replaces():
            return residual.to(hidden.dtype)
        if ranks is not None:
            hidden = self._divided(hidden, residual, ranks)
        before, image, behind = self.adapter.image_tokens(hidden, residual.shape[1])
        if residual.shape != image.shape:
            raise RuntimeError(f"a residual of {tuple(residual.shape)} cannot stand in for {tuple(image.shape)}")
        return _joined(before, _sum(image, residual), behind)


def _joined(before: Tensor | None, image: Tensor, behind: Tensor | None) -> Tensor:
    """The image tokens among what else the head is given."""
    if before is None and behind is None:
        return image
    return torch.cat([part for part in (before, image, behind) if part is not None], 1)


def _sum(entered: Tensor, residual: Tensor) -> Tensor:
    """The input of the blocks and their forecast residual; a forecast may go beyond what float16 can add."""
    if entered.dtype == torch.float16:
        return narrowed(entered.float() + residual.float(), entered.dtype)
    return entered + (residual if residual.dtype == entered.dtype else residual.to(entered.dtype))


def _stack() -> StackState | None:
    """That of the denoiser which runs now, for whichever call of whichever handle."""
    call = current()
    state = None if call is None else call.working
    return state.stack if state is not None and state.ours else None


def _rows() -> Rows | None:
    stack = _stack()
    return None if stack is None else stack.rows


def _passed_over(stock: Any) -> dict[str, Any]:
    """A list whose modules are all there, to be moved, saved or counted, but in which a loop may find none."""

    def __iter__(self: Any) -> Iterator[nn.Module]:
        stack = _stack()
        return stock.__iter__(self) if stack is None or stack.residual is None else iter(())

    return {"__iter__": __iter__}


@contextmanager
def passing_over(lists: Sequence[nn.Module], state: StackState) -> Iterator[None]:
    """Within it a loop over the lists finds no block, in the denoiser call that has this state."""
    user = object()
    for held in lists:
        occupy(held, user, _passed_over)
    state.residual = torch.empty(0)
    try:
        yield
    finally:
        state.rest()
        for held in lists:
            vacate(held, user)


def _lists_of(blocks: list[nn.Module], transformer: nn.Module) -> list[nn.ModuleList]:
    """The lists that hold the blocks and nothing else. Raises ValueError for blocks that stand elsewhere."""
    ids = {id(block) for block in blocks}
    modules = transformer.modules()
    lists = [m for m in modules if isinstance(m, nn.ModuleList) and m and {id(b) for b in m} <= ids]
    if {id(block) for held in lists for block in held} != ids:
        raise ValueError(
            f"temporal caching needs blocks that stand in ModuleLists of their own, which the forward of "
            f"{type(transformer).__name__} goes through; use temporal=None"
        )
    return lists
