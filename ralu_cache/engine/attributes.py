"""What a pipeline's attributes are within a call: the call's own, where its `__call__` or a callback stores them."""

from __future__ import annotations

import dis
import inspect
from functools import cache
from typing import Any

from ralu_cache.engine.context import call_of, current


@cache
def stored(stock: type) -> set[str]:
    """The attributes that a pipeline's `__call__` stores, or that of a class which it may go on to."""
    calls = (inspect.unwrap(vars(cls)["__call__"]) for cls in stock.__mro__ if "__call__" in vars(cls))
    return {found.argval for call in calls for found in dis.get_instructions(call) if found.opname == "STORE_ATTR"}


def components(stock: Any) -> property:
    """What a pipeline is made of: also within a call with the user's own scheduler, so that a sibling is stock."""

    def get(self: Any) -> dict[str, Any]:
        return {name: vars(self).get(name, part) for name, part in stock.components.fget(self).items()}

    return property(get)


def of_the_call(stock: type, name: str) -> property:
    """An attribute that within a call is the call's own."""

    def get(self: Any) -> Any:
        call = call_of(self)
        if call is not None and name in call.own:
            return call.own[name]
        if call is not None and name == "scheduler":
            return call.scheduler
        if name in vars(self):
            return vars(self)[name]
        return getattr(stock, name)

    def put(self: Any, value: Any) -> None:
        vars(self)[name] = value  # there too: other threads may watch
        call = call_of(self)
        if call is not None and name != "scheduler":
            if current() is not call and name in call.own and not _alike(call.own[name], value):
                call.forget(residuals=name.endswith("_kwargs"))  # guidance, or what the model is told
            call.own[name] = value

    def delete(self: Any) -> None:
        vars(self).pop(name, None)

    return property(get, put, delete)


def guider(name: str) -> property:
    """A guider of the pipeline's, within a call the call's own: see `ralu_cache.engine.guider`."""

    def get(self: Any) -> Any:
        try:
            held = vars(self)[name]
        except KeyError:
            raise AttributeError(name) from None
        call = call_of(self)
        return held if call is None or held is None else call.guider_of(name, held)

    def put(self: Any, value: Any) -> None:
        vars(self)[name] = value
        call = call_of(self)
        if call is not None:
            call.guiders.pop(name, None)

    def delete(self: Any) -> None:
        vars(self).pop(name, None)

    return property(get, put, delete)


def _alike(one: Any, other: Any) -> bool:
    """True for the same object, and for equal numbers."""
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return one is other or (numbers and one == other)
