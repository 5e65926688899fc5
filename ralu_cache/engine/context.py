"""Which call the code now running belongs to: a context variable of weak references.

Only the frame of a pipeline's call keeps its entry alive. Whatever is dead or over is skipped, so an exception, an
interrupt or a context that was copied leaves nothing behind, and a thread without the context is stock.
"""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Entry(Protocol):
    """A call under way, or a pause in one. over: it has ended, though someone still holds it."""

    @property
    def over(self) -> bool: ...


class Pause:
    """While it is the innermost entry, nothing belongs to a call: callbacks run under it."""

    over = False


_ENTRIES: contextvars.ContextVar[tuple[weakref.ref[Any], ...]] = contextvars.ContextVar("ralu_cache", default=())


def current() -> Any:
    """The `Call` that the code now running belongs to; None outside of calls, and within callbacks."""
    entries = _ENTRIES.get()
    while entries:
        entry = entries[-1]()
        if entry is not None and not entry.over:
            return None if isinstance(entry, Pause) else entry
        entries = entries[:-1]
    return None


def call_of(pipe: object) -> Any:
    """The innermost `Call` of this very pipeline in the present context, paused or not; None without one."""
    for reference in reversed(_ENTRIES.get()):
        entry = reference()
        if entry is not None and not entry.over and not isinstance(entry, Pause) and entry.pipe is pipe:
            return entry
    return None


@contextmanager
def entered(entry: Entry) -> Iterator[None]:
    """Within it, `entry` is the innermost one. It is not kept alive."""
    before = tuple(reference for reference in _ENTRIES.get() if reference() is not None)
    mine = weakref.ref(entry)
    try:
        _ENTRIES.set((*before, mine))
        yield
    finally:
        if _ENTRIES.get()[-1:] == (mine,):  # otherwise a generator is being closed in another context
            _ENTRIES.set(before)
