"""Weights that offload hooks keep elsewhere, brought for what is computed outside of the modules' own forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def at_hand(*modules: nn.Module) -> Iterator[None]:
    """Within it the modules' own weights are where they are computed with; then they go where their hooks keep them.

    Asks the hooks themselves, in the order given, as the modules' forward would: accelerate's (model offload,
    sequential offload, device maps) and diffusers' group offloading. Submodules that are called bring their own.
    """
    with ExitStack() as begun:
        for module in modules:
            for hook in _hooks(module):
                hook.pre_forward(module)
                begun.callback(hook.post_forward, module, None)
                if hasattr(hook, "group"):
                    begun.enter_context(_not_prefetched(hook.group))
            begun.enter_context(_untraced(module))
        yield


@contextmanager
def _not_prefetched(group: Any) -> Iterator[None]:
    """Whatever runs within it does not bring this group's weights once more, in a stream that nobody waits for."""
    before, group.onload_self = group.onload_self, True
    try:
        yield
    finally:
        group.onload_self = before


@contextmanager
def _untraced(module: nn.Module) -> Iterator[None]:
    """What runs within it is no part of the order that group offloading with streams learns from the first forward."""
    tracer = _hook(module, "lazy_prefetch_group_offloading")
    order = None if tracer is None else [*tracer.execution_order]
    try:
        yield
    finally:
        if tracer is not None:
            tracer.execution_order = order


def _hooks(module: nn.Module) -> list[Any]:
    found = (
        getattr(module, "_hf_hook", None), _hook(module, "group_offloading"), _hook(module, "layerwise_casting"),
    )  # fmt: skip
    return [hook for hook in found if hook is not None]


def _hook(module: nn.Module, name: str) -> Any:
    """One of diffusers' own."""
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)
