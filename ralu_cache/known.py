"""Tensors on a device whose values the host knows as well, so that it need not wait for the device to tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_FOLLOWED = {
    Tensor.__getitem__, Tensor.unbind, Tensor.expand, Tensor.repeat, Tensor.flatten, Tensor.to, Tensor.float,
    Tensor.__truediv__, Tensor.div, torch.div, Tensor.__mul__, Tensor.mul, torch.mul, torch.cat, torch.stack,
}  # fmt: skip
"""What pipelines do with a time step before they hand it to the denoiser; more only costs the knowledge."""


class Known(Tensor):
    """`plain`, a tensor like any other, and `host`, the same values on the CPU.

    What is computed from it is known too where the operation is one of a few, and all tensors in it are known or on
    the CPU; otherwise the result is plain. Results are those of `plain`, bit for bit. Once written to it is known no
    more.
    """

    plain: Tensor
    host: Tensor
    version: int | None

    @classmethod
    def of(cls, plain: Tensor, host: Tensor) -> Known:
        """Raises ValueError for another shape or dtype."""
        if plain.shape != host.shape or plain.dtype != host.dtype:
            raise ValueError(
                f"the host must know the same values: {tuple(plain.shape)} {plain.dtype}, got {tuple(host.shape)} "
                f"{host.dtype}"
            )
        known = plain.as_subclass(cls)
        known.plain, known.host, known.version = plain, host, _version(plain)
        return known

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*tree_map(plain, args), **tree_map(plain, kwargs))
        if func not in _FOLLOWED:
            return result
        try:
            host = _on_host(func, args, kwargs, result)
        except _NotKnown:
            return result
        return tree_map(cls.of, result, host)


class _NotKnown(Exception):
    """A tensor takes part whose values the host does not know."""


def _on_host(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """`result` as the host can have it without asking. Raises _NotKnown where it cannot."""
    if func is Tensor.to:
        return _known_value(args[0]).to(result.dtype)
    return func(*tree_map(_known_value, args), **tree_map(_known_value, kwargs))


def _known_value(value: Any) -> Any:
    if isinstance(value, Known) and _version(value.plain) == value.version:
        return value.host
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise _NotKnown
    return plain(value)


def _version(tensor: Tensor) -> int | None:
    """How often it was written to; nobody counts that of tensors made in inference mode."""
    return None if tensor.is_inference() else tensor._version


def plain(value: Any) -> Any:
    """The plain tensor of a known one; anything else as it is."""
    return value.plain if isinstance(value, Known) else value


def on_host(tensor: Tensor) -> Tensor:
    """The values of a tensor on the CPU; waits for the device unless they are known."""
    if isinstance(tensor, Known) and _version(tensor.plain) == tensor.version:
        return tensor.host
    return plain(tensor).cpu()
