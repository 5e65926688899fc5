"""Finds a denoiser's stack of blocks, by running it: a module list that the tokens go through, and what takes them.

One forward with hooks tells in which order blocks of lists and other modules run. Then, candidate by candidate, the
largest first, the model is run without the blocks while its head is given what it had with them: where the output is
the same bit for bit, all that the blocks do reaches the output through the head, and reuse of that is right. Of those
with at least half of the largest one's weights, one whose residual can be told goes first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.finding import Finding, Place
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.probed import at
from ralu_cache.adapters.ranks import ranks_of
from ralu_cache.adapters.weights import at_hand
from ralu_cache.engine.blocks import StackState, passing_over
from ralu_cache.engine.disguise import stock_of


class NothingFound(TypeError):
    """No chain of blocks was found in a denoiser; says why."""


@dataclass(eq=False)
class Unit:
    """Module lists whose blocks run one after the other, and what their first block is given."""

    lists: list[str]
    begin: int
    end: int
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    signals: list[tuple[str, Place, Tensor]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Taken:
    """A module outside of the lists that ran, and its first argument."""

    name: str
    when: int
    tensor: Tensor


def find_stack(module: nn.Module, call: Mapping[str, Any], state: StackState) -> Finding:
    """The finding of a denoiser, by a call of it. state: of the call in whose name it runs.

    The root's own hooks are not asked, and weights are where offload hooks bring them. Raises NothingFound.
    """

    batch = len(next(iter(call.values())))

    def run() -> Any:
        return type(module).forward(module, **call)

    with torch.no_grad(), at_hand(module):
        recording = Recording(module)
        try:
            output = run()
        finally:
            recording.remove()
        found: list[tuple[int, Finding]] = []
        reasons: list[str] = []
        for weight, units in recording.candidates():
            if found and weight < found[0][0] / 2:
                break
            finding = _check(module, recording, units, run, output, state, batch)
            if isinstance(finding, str):
                reasons.append(finding)
            elif finding.entered is not None:
                return finding
            else:
                found.append((weight, finding))
    if found:
        return found[0][1]
    why = "; ".join(reasons) or "no ModuleList of its has blocks that run before a module that takes in tokens"
    raise NothingFound(
        f"{stock_of(type(module)).__name__} has no stack of blocks that it can be run without ({why}); what works with "
        "it: temporal='forecast:3', which leaves out whole calls"
    )


def _here(note: Callable[..., Any]) -> Hook:
    """A hook that is asked in this thread alone: others may run the same model meanwhile."""
    thread = threading.get_ident()

    def within(*args: Any) -> Any:
        return note(*args) if threading.get_ident() == thread else None

    return Hook(within)


class Recording:
    """What ran in one forward of a denoiser, in its order."""

    def __init__(self, module: nn.Module) -> None:
        self.units: list[Unit] = []
        self.taken: list[Taken] = []
        self._module, self._time = module, 0
        self._handles: list[RemovableHandle] = []
        self._runs: dict[int, int] = {}
        lists = dict(_outer_lists(module))
        inside = {id(part) for held in lists.values() for block in held for part in block.modules()}
        held_ids = {id(held) for held in lists.values()}
        around = {id(part) for part in module.modules() if held_ids.intersection(map(id, part.modules()))}
        for name, held in lists.items():
            for number, block in enumerate(held):
                self._hook(block, self._block(name, number == 0))
            for part_name, part in held[0].named_modules():
                if part_name and not isinstance(part, nn.ModuleList) and "Norm" not in type(part).__name__:
                    self._hook(part, self._part(name, part_name))
        for name, part in module.named_modules():
            if id(part) not in inside and id(part) not in around:
                self._hook(part, self._outside(name))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, part: nn.Module, note: Callable[..., None]) -> None:
        self._handles.append(part.register_forward_pre_hook(_here(note), with_kwargs=True))

    def _block(self, name: str, first: bool) -> Callable[..., None]:
        def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._time += 1
            self._runs[id(block)] = self._runs.get(id(block), 0) + 1
            unit = next((unit for unit in self.units if name in unit.lists), None)
            if unit is None:
                self.units.append(Unit([name], self._time, self._time, args, kwargs))
            else:
                unit.end = self._time

        return note

    def _part(self, name: str, part_name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            unit = next(unit for unit in self.units if name in unit.lists)
            if unit.end == unit.begin:
                unit.signals += [(part_name, place, tensor) for place, tensor in _places(args, kwargs)]

        return note

    def _outside(self, name: str) -> Callable[..., None]:
        def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._time += 1
            self._runs[id(part)] = self._runs.get(id(part), 0) + 1
            if self.units and args and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].ndim > 2:
                self.taken.append(Taken(name, self._time, args[0]))

        return note

    def once(self, part: nn.Module) -> bool:
        """True if a module ran exactly once."""
        return self._runs.get(id(part)) == 1

    def candidates(self) -> list[tuple[int, list[Unit]]]:
        """Neighbouring units that might be left out together, and how many weights they have, the most first."""
        units = _apart(self.units)
        found = [units[i:j] for i in range(len(units)) for j in range(i + 1, len(units) + 1)]
        return sorted([(self._weight(some), some) for some in found], key=lambda pair: -pair[0])

    def _weight(self, units: list[Unit]) -> int:
        lists = (self._module.get_submodule(name) for unit in units for name in unit.lists)
        return sum(part.numel() for held in lists for part in held.parameters())


def _check(
    module: nn.Module,
    recording: Recording,
    units: list[Unit],
    run: Callable[[], Any],
    output: Any,
    state: StackState,
    batch: int,
) -> Finding | str:
    """The finding that some units are, or why they are none. batch: samples of the call."""
    names = tuple(name for unit in units for name in unit.lists)
    lists = [cast(nn.ModuleList, module.get_submodule(name)) for name in names]
    blocks = [block for held in lists for block in held]
    told = f"without {', '.join(names)}"
    after = [taken for taken in recording.taken if taken.when > units[-1].end]
    after = [taken for taken in after if recording.once(module.get_submodule(taken.name))]
    if not after:
        return f"{told}: no module takes in tokens after them"
    if not all(map(recording.once, blocks)):
        return f"{told}: a block of theirs does not run exactly once"
    head, bases = after[0], []
    if len(head.tensor) != batch:
        return f"{told}: {head.name} takes in {tuple(head.tensor.shape)}, not {batch} samples"

    def give(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if state.residual is None:
            return None
        bases.append(args[0])
        return (head.tensor, *args[1:])

    ran: list[nn.Module] = []
    hooks = [block.register_forward_pre_hook(_here(lambda part, _: ran.append(part))) for block in blocks]
    hooks.append(module.get_submodule(head.name).register_forward_pre_hook(_here(give)))
    try:
        with passing_over(lists, state):
            without = run()
    except Exception as error:  # of the model's own code, which may need what its blocks give
        return f"{told}: {type(error).__name__}: {error}"
    finally:
        for hook in hooks:
            hook.remove()
    if ran:
        return f"{told}: the forward comes to its blocks in another way than by a loop over them"
    if not bases or not _same(output, without):
        return f"{told} the output is another, though {head.name} takes in the same"
    first, base, ranks = units[0], bases[0], ranks_of(module)
    divided = ranks is not None and ranks.is_own(head.tensor, base)  # by the first block, for its rank
    if base.shape != head.tensor.shape and not divided:
        entered = None
        if base.ndim > 3:
            return f"{told}: {head.name} takes in {tuple(head.tensor.shape)}, and {tuple(base.shape)} without them"
    else:
        places = [place for place, tensor in _places(first.args, first.kwargs) if tensor.ndim > 1]
        given = (replace(place, batch=axis) for place in places for axis in (0, 1))
        entered = next(filter(None, (_within(base, p, at(p, first.args, first.kwargs)) for p in given)), None)
        if divided and entered is not None and entered.part != "all":
            entered = None
    if (signal := _signal(first, entered, batch)) is None:
        return f"{told}: the first block is given no tokens of {batch} samples"
    return Finding(names, len(blocks), head.name, entered, signal)


def _signal(first: Unit, entered: Place | None, batch: int) -> tuple[str, Place] | None:
    """Where the modulated tokens are in the first block: what its first part that is no norm is given, or its input."""
    places = list(_places(first.args, first.kwargs))
    given = [tensor for place, tensor in places if entered is None or place.key == entered.key]
    parts = [part for part in first.signals if any(part[2].shape == t.shape and part[2] is not t for t in given)]
    for name, place, tensor in [*parts, *(("", place, tensor) for place, tensor in places)]:
        if tensor.is_floating_point() and tensor.ndim > 2 and batch in tensor.shape[:2]:
            return name, replace(place, batch=tensor.shape.index(batch))
    return None


def _within(base: Tensor, place: Place, tensor: Tensor) -> Place | None:
    """The place of `base` (B, n, ...) in the tensor (B, m, ...) that is there, if it is that or some of its tokens."""
    if tensor.ndim != base.ndim or tensor.shape[0] != base.shape[0] or tensor.shape[2:] != base.shape[2:]:
        return None
    if tensor.dtype != base.dtype:
        tensor = tensor.to(base.dtype)
    count, most = base.shape[1], tensor.shape[1]
    for start, part in ((most - count, "last"), (0, "first")) if most >= count else ():
        if torch.equal(tensor[:, start : start + count], base):
            return replace(place, part="all" if count == most else part)
    return None


def _places(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Place, Tensor]]:
    """The tensors among a module's arguments."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in given:
        if isinstance(value, Tensor):
            yield Place(key), value


def _same(one: Any, other: Any) -> bool:
    """True if two outputs of a model are equal bit for bit; nan equals nan."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.allclose(one, other, 0, 0, True)
    if isinstance(one, Mapping):
        return all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return True


def _outer_lists(module: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The module lists that are not part of another's blocks, by name."""
    names: list[str] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
            yield name, part


def _apart(units: list[Unit]) -> list[Unit]:
    """Units whose blocks run by turns are one."""
    found: list[Unit] = []
    for unit in sorted(units, key=lambda unit: unit.begin):
        if found and unit.begin < found[-1].end:
            found[-1].lists += unit.lists
            found[-1].end = max(found[-1].end, unit.end)
        else:
            found.append(unit)
    return found
