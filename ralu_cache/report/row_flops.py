"""Analytic cost of a transformer by its rows: what each image token, each text token and each sample brings along.

Counted as in `ralu_cache.report.flops`, all of one sample. Which layers a row passes is read off the model by its
adapter (`ralu_cache.adapters.counted`); the sums here know no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ralu_cache.report.flops import attention_flops


@dataclass(frozen=True)
class Part:
    """Some layers of a model.

    image, text, sample: operations of linear layers for each image token, each text token, and once a sample. The
    others are widths of attention: joint, of all tokens to all; among_image and among_text, of one kind to itself;
    cross, of image tokens to text.
    """

    image: int = 0
    text: int = 0
    sample: int = 0
    joint: int = 0
    among_image: int = 0
    among_text: int = 0
    cross: int = 0

    def flops(self, image: int, text: int, fresh: int | None = None) -> int:
        """With `fresh`, so many image tokens ask all `image` of them, whose keys and values are known."""
        rows = image if fresh is None else fresh
        return (
            self.image * rows
            + self.text * text
            + self.sample
            + attention_flops(rows + text, image + text, self.joint)
            + attention_flops(rows, image, self.among_image)
            + attention_flops(text, text, self.among_text)
            + attention_flops(rows, text, self.cross)
        )


@dataclass(frozen=True)
class BlockCost:
    """One block: its attention with the projections around it; its MLPs, a row each; what is due whatever is reused."""

    attention: Part
    mlp: Part = Part()
    always: Part = Part()


@dataclass(frozen=True)
class StackCost:
    """What lies outside of the blocks, and the blocks in their order."""

    outside: Part
    blocks: Sequence[BlockCost] = field(default_factory=tuple)

    def forward(self, image: int, text: int, fresh: int | None = None) -> int:
        """Of one sample; with `fresh`, only so many image tokens, and all text, run through the blocks.

        Raises ValueError for a number of fresh tokens that is not within 0 to `image`.
        """
        if fresh is not None and not 0 <= fresh <= image:
            raise ValueError(f"fresh tokens must lie within 0 to {image}, got {fresh}")
        parts = (part for block in self.blocks for part in (block.attention, block.mlp, block.always))
        return self.skipped(image, text) + sum(part.flops(image, text, fresh) for part in parts)

    def skipped(self, image: int, text: int) -> int:
        """Of one sample, all blocks passed over."""
        return self.outside.flops(image, text)

    def replay(self, image: int, text: int, fresh: Sequence[int] = (), words: Sequence[int] = ()) -> int:
        """Of one sample: no attention runs, and each block's MLPs for so many tokens; for none by default.

        Raises ValueError for other numbers of blocks than the model's.
        """
        rows = self._filled(fresh), self._filled(words)
        blocks = zip(self.blocks, *rows, strict=True)
        return self.skipped(image, text) + sum(
            block.always.flops(image, text) + block.mlp.flops(tokens, others) for block, tokens, others in blocks
        )

    def _filled(self, counts: Sequence[int]) -> Iterator[int]:
        given = tuple(counts) or (0,) * len(self.blocks)
        if len(given) != len(self.blocks):
            raise ValueError(f"counts of {len(self.blocks)} blocks are needed, got {len(given)}")
        return iter(given)
