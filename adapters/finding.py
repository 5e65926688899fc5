"""What a probe found in a denoiser: where its stack of blocks is, and what takes it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a tensor stands among the arguments of a module: by position or by name.

    part: which of its tokens are meant, "all" of them or as many as are asked for, the "first" or the "last". batch:
    the axis of the samples.
    """

    key: int | str
    part: str = "all"
    batch: int = 0


@dataclass(frozen=True)
class Finding:
    """The longest chain of blocks that a denoiser can be run without, by what its head takes in.

    lists: the ModuleLists that hold the blocks, by their names in the denoiser, in the order in which they run. count:
    of the blocks. head: the first module after them. entered: where the head's tokens stand among the arguments of the
    first block, None where they can't be found there; then the head's input itself is kept in place of a residual.
    signal: the part of the first block that is given the modulated tokens, by its name in the block, and where.
    """

    lists: tuple[str, ...]
    count: int
    head: str
    entered: Place | None
    signal: tuple[str, Place]

    def __str__(self) -> str:
        kept = "its residual" if self.entered is not None else "what the head takes in"
        where = self.signal[0] or "its input"
        return f"{self.count} blocks in {', '.join(self.lists)}, then {self.head}; kept is {kept}; signal at {where}"
