"""The peers' caches in the regime's study: diffusers' own and cache-dit's, through their own APIs.

A peer is "name:value": "fbcache:0.2", "magcache:0.3", "taylorseer:5" and "taylorseer-lite:5" of diffusers,
"dbcache:0.2" and "dbcache-taylorseer:0.2" of cache-dit. They hook the blocks' forward, so they draw with blocks that
are not compiled, and their FLOPs are counted as they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from benchmarks import peer_caches
from benchmarks.regime.pictures import scene_prompts

PEERS = ("fbcache", "magcache", "taylorseer", "taylorseer-lite", "dbcache", "dbcache-taylorseer")


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


FORMULAS = flop_registry | {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}  # is not in it


class _Flops(TorchDispatchMode):
    """Adds up what PyTorch's registry says of each operation; `FlopCounterMode` recurses in modules that hold each
    other, as cache-dit's do."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        output = func(*args, **given)
        if (count := FORMULAS.get(func._overloadpacket)) is not None:
            self.total += count(*args, **given, out_val=output)
        return output


class Counted:
    """FLOPs of all calls of a denoiser within it."""

    def __init__(self, denoiser: Any) -> None:
        self.flops = 0.0
        self._denoiser = denoiser

    def __enter__(self) -> Counted:
        self._modes: list[_Flops] = []
        self._handles = [
            self._denoiser.register_forward_pre_hook(self._begin),
            self._denoiser.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._modes.append(_Flops())
        self._modes[-1].__enter__()

    def _end(self, *_: Any) -> None:
        mode = self._modes.pop()
        mode.__exit__(None, None, None)
        self.flops += mode.total


def fresh_for(spec: str) -> bool:
    """True of a peer that needs a pipeline which was not called before: after cache-dit, diffusers' caches fail on the
    same one, and its own, switched on again, breaks pictures that it draws well at first."""
    return spec.startswith("dbcache")


def peer(pipe: Any, spec: str, steps: int, call: dict[str, Any]) -> AbstractContextManager[None]:
    """A peer's cache on the pipeline, for guided calls of so many steps; call: what they are given but prompts, seeds.

    Raises ValueError for an unknown peer.
    """
    name, _, value = spec.partition(":")
    if name not in PEERS:
        raise ValueError(f"peer {spec!r}; accepted: {', '.join(PEERS)}, each with a value as in 'fbcache:0.2'")
    if name == "fbcache":
        return peer_caches.first_block_cache(pipe, float(value))
    if name == "magcache":
        return peer_caches.mag_cache(pipe, float(value), steps, _ratios(pipe, steps, tuple(sorted(call.items()))))
    if name.startswith("taylorseer"):
        return peer_caches.taylorseer(pipe, int(value), lite=name.endswith("lite"))
    return peer_caches.dbcache(pipe, float(value), steps, True, forecast=name != "dbcache")


@cache
def _ratios(pipe: Any, steps: int, call: Sequence[tuple[str, Any]]) -> list[float]:
    """MagCache's magnitude ratios on prompts that nothing is reported on."""
    prompts = scene_prompts("train", 4)
    given = {name: value for name, value in call if name not in ("num_inference_steps", "output_type")}
    return peer_caches.calibrate_mag_cache(pipe, steps, **given, prompt=list(prompts), negative_prompt=[""] * 4)
