"""Hooks of ours in a model, of which copies of the model keep nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_embedded: ContextVar[bool] = ContextVar("_embedded", default=False)


class Gone:
    """What a hook of ours becomes in a copy of the module that it hangs on: nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None


class Hook:
    """A function as a hook of a module, of which copies of the module keep nothing."""

    def __init__(self, function: Any) -> None:
        self.function = function

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Gone, ()


def placed_after(embedder: nn.Module, active: Callable[[], object]) -> RemovableHandle:
    """A hook for models whose one module places image and text in turn: what it places first, once `embedder` has run
    for a call of ours, is what `is_first_placed` is true for."""

    def embedded(*_: Any) -> None:
        if active() is not None:
            _embedded.set(True)

    return embedder.register_forward_pre_hook(Hook(embedded))


def is_first_placed() -> bool:
    """True once after each run of the embedder, in this context."""
    first = _embedded.get()
    _embedded.set(False)
    return first
