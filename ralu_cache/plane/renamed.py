"""Options of settings by their old names: still taken, with a DeprecationWarning that says the new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Settings = TypeVar("Settings", bound=type[Any])


def renamed(**new_names: str) -> Callable[[Settings], Settings]:
    """Decorates a class of settings: `renamed(old="new")` lets `old` be given, and read, in place of `new`."""

    def decorate(settings: Settings) -> Settings:
        make = settings.__init__

        @wraps(make)
        def __init__(self: Any, *args: Any, **options: Any) -> None:
            for old in new_names.keys() & options.keys():
                options[_new_name(settings, old, new_names[old])] = options.pop(old)
            make(self, *args, **options)

        settings.__init__ = __init__
        for old, new in new_names.items():
            setattr(settings, old, property(_reader(settings, old, new)))
        return settings

    return decorate


def _reader(settings: type, old: str, new: str) -> Callable[[Any], Any]:
    return lambda self: getattr(self, _new_name(settings, old, new))


def _new_name(settings: type, old: str, new: str) -> str:
    warnings.warn(f"{settings.__name__}.{old} is called {new} now", DeprecationWarning, stacklevel=3)
    return new
