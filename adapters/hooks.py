"""Hooks of ours in a model, of which copies of the model keep nothing."""

from __future__ import annotations

from typing import Any

import torch


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
