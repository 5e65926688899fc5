"""Contenders: ways to run a pipeline faster, by name, each a context that leaves the pipeline as it found it.

"none" is the stock pipeline, "steps:12" the same with fewer steps, anything else a method of ours as
`ralu_cache.sweep.methods` writes it. `register_contender` adds others, peers that a study compares with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from ralu_cache.api import accelerate
from ralu_cache.report.report import Report
from ralu_cache.sweep.methods import Method, parse_method
from ralu_cache.sweep.records import Setting


@dataclass
class Prepared:
    """A pipeline made ready: `steps` to ask it for; after the call, `report` is what it says of itself, if anything.

    pipe: another one to call in place of the sweep's, for contenders that cannot give theirs back as it was.
    """

    steps: int
    report: Callable[[], Report | None] = lambda: None
    pipe: Any = None


Contender = Callable[[Any, Setting, str], AbstractContextManager[Prepared]]
CONTENDERS: dict[str, Contender] = {}
"""Those that are registered, by name; another process is sent them."""


def register_contender(name: str, contender: Contender) -> None:
    """Make "name" and "name:value" methods of sweeps: `contender(pipe, setting, value)`, the value "" if there is none.

    Raises ValueError for a name that is empty, taken, or holds a colon or a plus sign.
    """
    if not name or ":" in name or "+" in name:
        raise ValueError(f"a contender needs a name without colon and plus sign, got {name!r}")
    if name in CONTENDERS:
        raise ValueError(f"contender {name!r} is registered already")
    CONTENDERS[name] = contender


def check_method(method: str) -> None:
    """Raises ValueError for a method that `prepare` would not know."""
    name, _, value = method.partition(":")
    if name == "steps":
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"method {method!r}: steps must be a positive number, as in 'steps:12'")
    elif name not in CONTENDERS:
        parse_method(method)


def prepare(pipe: Any, setting: Setting) -> AbstractContextManager[Prepared]:
    """The pipeline made ready for one setting. Raises ValueError for an unknown method."""
    check_method(setting.method)
    name, _, value = setting.method.partition(":")
    if name == "steps":
        return _stock(int(value))
    if name in CONTENDERS:
        return CONTENDERS[name](pipe, setting, value)
    method = parse_method(setting.method)
    return _stock(setting.steps) if method == Method() else _ours(pipe, method, setting.steps)


def uncached(setting: Setting) -> Setting | None:
    """The same plan and guidance without caching, where that is neither the setting itself nor the stock run."""
    name = setting.method.partition(":")[0]
    if name == "steps" or name in CONTENDERS:
        return None
    method = parse_method(setting.method)
    if method.temporal is None or method.uncached == Method():
        return None
    return Setting(str(method.uncached), setting.steps, setting.height, setting.width)


@contextmanager
def _stock(steps: int) -> Iterator[Prepared]:
    yield Prepared(steps)


@contextmanager
def _ours(pipe: Any, method: Method, steps: int) -> Iterator[Prepared]:
    with accelerate(pipe, **method.parts) as handle:
        yield Prepared(steps, lambda: handle.report)
