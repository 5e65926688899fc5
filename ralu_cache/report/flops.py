"""Analytic cost of a transformer by its rows: what each image token, each text token and each sample brings along.

Counted as `torch.utils.flop_counter` counts, two per multiply-add: every matrix multiplication, that is all linear
layers (modulation and embeddings included) and the two products of exact attention, 4 L^2 d for L tokens of width d.
Left out are normalisation, activations, softmax, rotary embedding and whatever else is not a product of matrices, and
layers that an extra brings along (IP-Adapter, LoRA kept apart). Which layers a row passes is read off the model by its
adapter (`ralu_cache.adapters.counted`); the sums here know no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Both matrix products of exact attention, all heads together: 4 queries keys width."""
    return 4 * queries * keys * width


@dataclass(frozen=True)
class Part:
    """Some layers of a model; the sum of two is both of them.

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

    def __add__(self, other: Part) -> Part:
        return Part(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

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

    attention: Part = Part()
    mlp: Part = Part()
    always: Part = Part()


@dataclass(frozen=True)
class StackCost:
    """What lies outside of the blocks, and the blocks in their order."""

    outside: Part
    blocks: Sequence[BlockCost] = ()

    def forward(self, image: int, text: int, fresh: int | None = None) -> int:
        """Of one sample; with `fresh`, only so many image tokens, and all text, run through the blocks.

        Raises ValueError for a number of fresh tokens that is not within 0 to `image`.
        """
        if fresh is not None and not 0 <= fresh <= image:
            raise ValueError(f"fresh tokens must lie within 0 to {image}, got {fresh}")
        return self.skipped(image, text) + self._inside.flops(image, text, fresh)

    def skipped(self, image: int, text: int) -> int:
        """Of one sample, all blocks passed over."""
        return self.outside.flops(image, text)

    def replay(self, image: int, text: int, fresh: Sequence[int] = (), words: Sequence[int] = ()) -> int:
        """Of one sample: no attention runs, and each block's MLPs for so many tokens; for none by default.

        Raises ValueError for other numbers of blocks than the model's.
        """
        blocks = zip(self.blocks, self._filled(fresh), self._filled(words), strict=True)
        mlps = sum(block.mlp.flops(tokens, others) for block, tokens, others in blocks)
        return self.skipped(image, text) + self._always.flops(image, text) + mlps

    def without(self, left_out: Collection[int]) -> StackCost:
        """Of a call that leaves out the blocks of these indices; those that the model does not have are ignored."""
        if not left_out:
            return self
        blocks = [BlockCost() if index in left_out else block for index, block in enumerate(self.blocks)]
        return replace(self, blocks=blocks)

    @cached_property
    def _inside(self) -> Part:
        return sum((part for block in self.blocks for part in (block.attention, block.mlp, block.always)), Part())

    @cached_property
    def _always(self) -> Part:
        return sum((block.always for block in self.blocks), Part())

    def _filled(self, counts: Sequence[int]) -> Iterator[int]:
        given = tuple(counts) or (0,) * len(self.blocks)
        if len(given) != len(self.blocks):
            raise ValueError(f"counts of {len(self.blocks)} blocks are needed, got {len(given)}")
        return iter(given)
