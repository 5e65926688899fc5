"""Options of settings by their old names: still taken, with a DeprecationWarning that says the new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Settings = TypeVar("Settings", bound=type[Any])


def renamed(old: str, new: str) -> Callable[[Settings], Settings]:
    """Decorates a class of settings: `old` may be given, and read, in place of its option `new`."""

    def decorate(settings: Settings) -> Settings:
        make = settings.__init__

        def warned() -> str:
            warnings.warn(f"{settings.__name__}.{old} is called {new} now", DeprecationWarning, stacklevel=3)
            return new

        @wraps(make)
        def __init__(self: Any, *args: Any, **options: Any) -> None:
            if old in options:
                options[warned()] = options.pop(old)
            make(self, *args, **options)

        settings.__init__ = __init__
        setattr(settings, old, property(lambda self: getattr(self, warned())))
        return settings

    return decorate
