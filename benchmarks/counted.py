"""FLOPs of a denoiser's calls, by PyTorch's own formulas, as its operations run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


FORMULAS = flop_registry | {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}  # is not in it


class Flops(TorchDispatchMode):
    """Adds up what PyTorch's registry says of each operation.

    Unlike `FlopCounterMode` it says nothing of modules, which takes several times as long, and for ever where modules
    hold each other, as cache-dit's do.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        output = func(*args, **given)
        if (count := FORMULAS.get(func._overloadpacket)) is not None:
            self.total += count(*args, **given, out_val=output)
        return output


class Counted:
    """FLOPs of each call of a denoiser within it, what hooks run within the call included."""

    def __init__(self, denoiser: Any) -> None:
        self.calls: list[int] = []
        self._denoiser = denoiser

    @property
    def flops(self) -> float:
        """Of all calls."""
        return float(sum(self.calls))

    def __enter__(self) -> Counted:
        self._modes: list[Flops] = []
        self._handles = [
            self._denoiser.register_forward_pre_hook(self._begin),
            self._denoiser.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._modes.append(Flops())
        self._modes[-1].__enter__()

    def _end(self, *_: Any) -> None:
        mode = self._modes.pop()
        mode.__exit__(None, None, None)
        self.calls.append(mode.total)
