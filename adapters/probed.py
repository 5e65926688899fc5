"""Any denoiser whose blocks a probe finds: an adapter made for its class, with what reuse of the whole stack needs.

Nothing is known of how its tokens lie in a picture, so a run sees each sample as one cell; there are no stages, no
layers and no costs. Decisions, branches and reports are those of every family.
"""

from __future__ import annotations

import inspect
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from ralu_cache.adapters.calls import Setting
from ralu_cache.adapters.finding import Finding, Place
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.protocols import Adapter, Probed

TIMES = ("timestep", "sigma", "time", "t", "step")
"""How the names of arguments begin or end that hold the noise level of a call."""


class ProbedAdapter(Adapter, Probed):
    """A denoiser of which only its finding is known, and that only once its first call has been probed."""

    family = "probed"
    pipelines = ()
    patch = 1
    ranked = True

    def __init__(self, transformer: Any) -> None:
        self._finding: Finding | None = None
        self.takes = latents_argument(transformer)

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return True

    def found(self) -> Finding | None:
        return self._finding

    def keep(self, finding: Finding | None) -> None:
        self._finding = finding

    def check(self, call: Mapping[str, Any], setting: Setting) -> None:
        if not isinstance(latents := call.get(self.takes), Tensor):
            raise TypeError(
                f"{self.family} is given its latents {self.takes!r} as {type(latents).__name__}, and a probe needs one "
                "tensor; what works with it: temporal='forecast:3', which leaves out whole calls"
            )

    def landmarks(self, module: Any) -> list[nn.Module]:
        return [part for part in module.modules() if isinstance(part, nn.ModuleList)] + [
            block for held in module.modules() if isinstance(held, nn.ModuleList) for block in held
        ]

    def conditioning(self, call: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """All but the latents and what tells the noise level: tensors, and numbers and words (blocks to leave out)."""
        given = {name: value for name, value in call.items() if name != self.takes and not is_time(name)}
        return dict(tensors_in(given)), tuple(settings_in(given))

    def select(self, call: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        batch = len(call[self.takes])
        return {name: _selected(value, batch, samples) for name, value in call.items()}

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        return 2, 2

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        """The latents in the form (B, C, H, W), (B, C, F, H, W), or of packed tokens (B, d, 1, n)."""
        latents: Tensor = call[self.takes]
        return latents if latents.ndim != 3 else latents.mT[:, :, None]

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return [block for name in self._found.lists for block in transformer.get_submodule(name)]

    def head(self, transformer: Any) -> nn.Module:
        head: nn.Module = transformer.get_submodule(self._found.head)
        return head

    def replaces(self) -> bool:
        return self._found.entered is None

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        place = self._found.entered
        return first_tensor(args, kwargs) if place is None else at(place, args, kwargs)

    def head_part(self, entered: Tensor, count: int) -> Tensor:
        place = self._found.entered
        if place is None:
            return entered.new_zeros(())
        return entered[:, :count] if place.part == "first" else entered[:, entered.shape[1] - count :]

    def takes_all(self) -> bool:
        place = self._found.entered
        return place is None or place.part == "all"

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        """What the first block's first part after its norm is given, of all samples (B, 4, ...), by running the model
        up to there."""
        name, place = self._found.signal
        first = self.blocks(transformer)[0]
        seen = seen_at(first.get_submodule(name), lambda: type(transformer).forward(transformer, **call), place)
        return seen.reshape(len(seen), 4, -1)

    @property
    def _found(self) -> Finding:
        assert self._finding is not None
        return self._finding


class _Seen(BaseException):
    """Ends a forward where what was looked for has been seen."""


def seen_at(module: nn.Module, run: Callable[[], Any], place: Place) -> Tensor:
    """What a module is given at a place when `run` comes to it, which goes no further; in this thread alone."""
    mine, found = threading.get_ident(), []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == mine:
            found.append(at(place, args, kwargs))
            raise _Seen

    handle = module.register_forward_pre_hook(Hook(look), with_kwargs=True)
    try:
        run()
    except _Seen:
        pass
    finally:
        handle.remove()
    return found[0]


def at(place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor at a place among a module's arguments."""
    value: Tensor = args[place.key] if isinstance(place.key, int) else kwargs[place.key]
    return value.movedim(place.batch, 0)


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The first tokens among a module's arguments."""
    return next(tensor for _, tensor in tensors_in([args, kwargs]) if tensor.is_floating_point() and tensor.ndim > 2)


def latents_argument(transformer: Any) -> str:
    """The name of the argument that holds the latents: the first of the model's forward."""
    names = [name for name in inspect.signature(type(transformer).forward).parameters if name != "self"]
    return names[0] if names else "hidden_states"


def is_time(name: str) -> bool:
    """True for the name of an argument that holds a noise level."""
    words = name.lower().split("_")
    return any(word.rstrip("s") in TIMES for word in words)


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested lists and dictionaries, by their names with dots between."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from tensors_in(part, f"{name}.{number}")


def settings_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and words in nested lists and dictionaries, named as `tensors_in` does."""
    if isinstance(value, int | float | str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from settings_in(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from settings_in(part, f"{name}.{number}")


def _selected(value: Any, batch: int, samples: Tensor) -> Any:
    """Some samples of every tensor whose first axis is the batch."""
    if isinstance(value, Tensor):
        return value[samples] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: _selected(part, batch, samples) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_selected(part, batch, samples) for part in value)
    return value


@cache
def probed(transformer: type[nn.Module], pipeline: str) -> type[ProbedAdapter]:
    """The adapter of a denoiser's class under a pipeline's; its instances hold what was found in one denoiser."""

    def matches(cls: type[Adapter], module: nn.Module) -> bool:
        return isinstance(module, transformer)

    body = {"family": transformer.__name__, "pipelines": (pipeline,), "matches": classmethod(matches)}
    name = f"Probed{transformer.__name__}"
    made: type[ProbedAdapter] = types.new_class(name, (ProbedAdapter,), {}, lambda names: names.update(body))
    return made
