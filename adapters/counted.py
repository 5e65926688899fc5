"""The cost of a model, read off its modules: how many operations a row takes in its linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ralu_cache.adapters.base import TransformerAdapter
from ralu_cache.report.row_flops import StackCost

_FUSED = ("to_qkv", "to_kv", "to_added_qkv", "to_added_kv")  # copies of layers that are there one by one


def row_flops(*modules: Any) -> int:
    """Operations of one row through all linear layers of the modules (of a convolution: of one patch).

    Neither what LoRA adds to a layer nor fused copies of layers are counted; None is a module that isn't there.
    """
    return sum(_of_row(module) for module in modules if module is not None)


def _of_row(module: Any) -> int:
    if hasattr(module, "in_features"):
        return 2 * module.in_features * module.out_features
    if hasattr(module, "kernel_size"):
        return 2 * module.in_channels * module.out_channels * prod(module.kernel_size)
    return sum(_of_row(child) for name, child in module.named_children() if name not in _FUSED)


class CountedAdapter(TransformerAdapter):
    """A family that says what its layers cost by `costs`, and writes `size`."""

    def costs(self, call: Mapping[str, Any]) -> StackCost:
        """What each sample of a call costs."""
        raise NotImplementedError

    def flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.size(call)
        return batch * self.costs(call).forward(image, text)

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.size(call)
        return batch * self.costs(call).skipped(image, text)

    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        batch, image, text = self.size(call)
        return batch * self.costs(call).forward(image, text, fresh)

    def replay_flops(self, call: Mapping[str, Any], image: Sequence[int] = (), text: Sequence[int] = ()) -> float:
        batch, tokens, words = self.size(call)
        return batch * self.costs(call).replay(tokens, words, image, text)
