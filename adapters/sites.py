"""What a submodule of a block is to a layer cache, whatever the model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a submodule is in its block."""

    ATTENTION = "attention"  # all tokens in, all tokens out
    CROSS_ATTENTION = "cross-attention"  # image tokens in, which ask the text, image tokens out
    MLP = "mlp"
    INNER_ATTENTION = "inner attention"  # of a single block: its output goes to `proj_out`
    PROJ_MLP = "proj_mlp"  # of a single block: all tokens in, tokens for `proj_out` out
    PROJ_OUT = "proj_out"
    PARALLEL = "attention and MLP"  # by the same projections: all tokens in, all tokens out


@dataclass(frozen=True)
class Site:
    """One submodule of one block.

    layer: the block's number. parts: what its outputs are, each "image", "text", "joint" (text before image), or
    "unused" by the block; an attention with an IP-adapter has a third one, of the image.
    """

    layer: int
    name: str
    role: Role
    parts: tuple[str, ...]

    def key(self, part: int = 0) -> str:
        """The name of one of its outputs in a `LayerCache`."""
        return f"{self.layer}.{self.name}.{part}"
