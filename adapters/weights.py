"""Weights that offload hooks keep elsewhere, brought for what is computed outside of the modules' own forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def at_hand(*modules: nn.Module) -> Iterator[None]:
    """Within it the modules' own weights are where they are computed with; then they go where their hooks keep them.

    Asks the hooks themselves, in the order given, as the modules' forward would: accelerate's (model offload,
    sequential offload, device maps) and diffusers' group offloading. Submodules that are called bring their own.
    """
    begun: list[tuple[Any, nn.Module]] = []
    try:
        for module in modules:
            for hook in _hooks(module):
                hook.pre_forward(module)
                begun.append((hook, module))
        yield
    finally:
        for hook, module in reversed(begun):
            hook.post_forward(module, None)


def _hooks(module: nn.Module) -> list[Any]:
    found = []
    if (hook := getattr(module, "_hf_hook", None)) is not None:
        found.append(hook)
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None:
        for name in ("group_offloading", "layerwise_casting"):
            if (hook := registry.get_hook(name)) is not None:
                found.append(hook)
    return found
