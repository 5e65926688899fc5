"""Instances that get a subclass of their own class: same names, signature and documentation; copies are stock again.

Nobody else's class is changed, `isinstance` holds, and what another object of the class does is untouched.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_STOCK = "_ralu_cache_stock"
_USERS = "_ralu_cache_users"


def stock_of(cls: type) -> type:
    """The class that a disguised one stands for; any other class itself."""
    return vars(cls).get(_STOCK, cls)


class Alike(type):
    """Makes a disguised class equal to the one that it stands for, for code that compares classes (Bria)."""

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type) and stock_of(cls) is stock_of(other)

    def __hash__(cls) -> int:
        return hash(stock_of(cls))


def disguised(stock: type, metaclass: type | None = None, /, **body: Any) -> type:
    """A subclass of `stock` that looks like it, with `body` in it; pickles and copies of instances are stock.

    metaclass: used where that of `stock` is the plain one.
    """
    names = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    make = metaclass if metaclass is not None and type(stock) is type else type(stock)
    return make(stock.__name__, (stock,), {"__reduce_ex__": _as_stock, **names, **body, _STOCK: stock})


def _as_stock(self: Any, protocol: Any) -> Any:
    state = {name: value for name, value in vars(self).items() if not name.startswith("_ralu_cache")}
    return _blank, (stock_of(type(self)),), state


def _blank(stock: Any) -> Any:
    return stock.__new__(stock)


@cache
def _worn(stock: type, make: Any) -> type:
    return disguised(stock, **make(stock))


def occupy(module: Any, user: object, make: Any) -> None:
    """Let `module` wear the class that `make(its stock class)` gives the body of, for one more user."""
    vars(module).setdefault(_USERS, set()).add(user)
    module.__class__ = _worn(stock_of(type(module)), make)


def vacate(module: Any, user: object) -> None:
    """`module` has one user less; without any it is of its stock class again."""
    users = vars(module).get(_USERS)
    if users is None:
        return
    users.discard(user)
    if not users:
        module.__class__ = stock_of(type(module))
        vars(module).pop(_USERS, None)
