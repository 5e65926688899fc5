"""A device that is not there: tensors that say they live on it, and a log of what made the host wait for it.

Values are kept on the CPU, so results are those of a CPU run. What a GPU would do is judged by rules: a copy between
host and device waits, whichever way it goes (ours are never from pinned memory); so does asking for a value, and what
has a size that depends on values, such as `nonzero` or an index by a mask. An operation on tensors of both sides
raises, as it does on a GPU; single numbers are let through.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("maia")  # a name that PyTorch knows, of a device that it is not built for
VALUES = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.numpy)
OPERATIONS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount",
}  # fmt: skip
INDEXED = {"index": 1, "index_put": 1, "index_put_": 1, "_index_put_impl_": 1}  # where the indices stand
OURS = ("/ralu_cache/", "/adapters/", "/benchmarks/")

Note = Callable[[str], None]


class OnDevice(Tensor):
    """A tensor whose `device` is the simulated one; `values` are what it holds."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.values = values
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.values!r})"

    def as_subclass(self, cls: type) -> Any:
        """A tensor of both classes."""
        return OnDevice.__new__(type(cls.__name__, (cls, OnDevice), {}), self.values)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _perform(func, args, kwargs or {}, lambda kind: None)


@dataclass(frozen=True)
class Wait:
    """The host waited: in what operation, and in which of our lines."""

    kind: str
    line: str


@dataclass
class Log:
    waits: list[Wait] = field(default_factory=list)
    on: bool = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What waits meanwhile is not noted."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def note(self, kind: str) -> None:
        if not self.on:
            return
        frames = [frame for frame in traceback.extract_stack() if any(part in frame.filename for part in OURS)]
        where = f"{frames[-1].filename.rsplit('/', 2)[-1]}:{frames[-1].lineno} {frames[-1].line}" if frames else "stock"
        self.waits.append(Wait(kind, where))


class Simulated(TorchDispatchMode):
    """While it lasts, tensors can be made on, moved to and read from the simulated device."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self._calls = _Calls(self.log.note)

    def __enter__(self) -> Any:
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._calls.__exit__(*failure)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _perform(func, args, kwargs or {}, self.log.note)


class _Calls(TorchFunctionMode):
    """What PyTorch does with devices before it asks a dispatch mode: copies, reads, indices, fused operations."""

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _there(given.get("device")):
            return _moved(func(*args, **{**given, "device": None}), DEVICE, note=self.note)
        if func is Tensor.to:
            return _moved(*args, note=self.note, **given)
        if func is Tensor.cpu:
            return _moved(args[0], "cpu", note=self.note)
        if args and isinstance(args[0], OnDevice):
            if func in VALUES:
                self.note(func.__name__)
                return func(args[0].values)
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                return _indexed(func, *args, note=self.note)
        try:
            return func(*args, **given)
        except RuntimeError as error:
            if "PyTorch is not linked with support" not in str(error):
                raise
        if func.__name__ in (*OPERATIONS, "new_tensor"):
            self.note(func.__name__)
        return _wrap(func(*_values(args), **_values(given)), {})  # it asked for the device's driver


def move(module: nn.Module) -> None:
    """Put a module's weights and buffers on the simulated device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(OnDevice(parameter.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)


def _there(device: Any) -> bool:
    return device is not None and torch.device(device) == DEVICE


def _moved(tensor: Tensor, *args: Any, note: Note, **kwargs: Any) -> Tensor:
    """`tensor.to(...)`."""
    others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if others:
        device, dtype = others[0].device, others[0].dtype
    else:
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
    was, will = _there(tensor.device), _there(tensor.device if device is None else device)
    if was == will:
        return tensor if dtype in (None, tensor.dtype) else tensor.type(dtype)
    note("copy to the device" if will else "copy to the host")
    values = _values(tensor).to(dtype or tensor.dtype)
    return OnDevice(values) if will else values


def _indexed(func: Any, tensor: OnDevice, place: Any, *value: Any, note: Note) -> Any:
    """`tensor[place]`, or `tensor[place] = value`."""
    places = place if isinstance(place, tuple) else (place,)
    _note_indices([index for index in places if isinstance(index, Tensor)], note)
    if any(isinstance(part, Tensor) and not isinstance(part, OnDevice) for part in value):
        note("copy to the device")
    result = func(tensor.values, *_values((place, *value)))
    return None if result is None else OnDevice(result)


def _perform(func: Any, args: Any, kwargs: dict[str, Any], note: Note) -> Any:
    """One operation of the dispatcher."""
    name = func._schema.name.removeprefix("aten::")
    given = list(_tensors((args, kwargs)))
    on_device = [tensor for tensor in given if isinstance(tensor, OnDevice)]
    host = [tensor for tensor in given if not isinstance(tensor, OnDevice)]
    target = kwargs.get("device")
    result_there = bool(on_device) if target is None else _there(target)
    if name in ("_to_copy", "copy_"):
        if name == "copy_":
            result_there = isinstance(args[0], OnDevice)
        if result_there and host:
            note("copy to the device")
        elif on_device and (host or not result_there):
            note("copy to the host")
    elif on_device and name in OPERATIONS:
        note(name)
    elif on_device and name in INDEXED:
        _note_indices(args[INDEXED[name]], note)
    elif on_device and any(tensor.ndim for tensor in host):
        raise RuntimeError(f"{name}: tensors of both host and device: {[tuple(tensor.shape) for tensor in host]}")
    result = func(*_values(args), **(_values(kwargs) | ({"device": "cpu"} if target else {})))
    if not result_there:
        return result
    known = {id(tensor.values): tensor for tensor in on_device}
    return [_wrap(part, known) for part in result] if isinstance(result, list | tuple) else _wrap(result, known)


def _note_indices(indices: Any, note: Note) -> None:
    for index in indices:
        if index is not None and not isinstance(index, OnDevice):
            note("index from the host")
        elif index is not None and index.dtype in (torch.bool, torch.uint8):
            note("index by a mask")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _values(value: Any) -> Any:
    """The same arguments on the CPU."""
    if isinstance(value, OnDevice):
        return value.values
    if isinstance(value, list | tuple):
        return type(value)(_values(part) for part in value)
    if isinstance(value, dict):
        return {name: _values(part) for name, part in value.items()}
    return torch.device("cpu") if isinstance(value, torch.device) and value == DEVICE else value


def _wrap(value: Any, known: dict[int, OnDevice]) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, OnDevice):
        return value
    return known[id(value)] if id(value) in known else OnDevice(value)
