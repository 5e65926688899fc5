"""What the library says of a call, kept quiet where every call would say the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent() -> Iterator[None]:
    """Without notices: that a plan overrides the number of steps is then the point, and reports have it anyway."""
    logger = logging.getLogger("ralu_cache")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
