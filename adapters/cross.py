"""What transformers share whose image tokens attend to themselves and then to the text, which has no blocks (Wan)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from ralu_cache.adapters.base import TransformerAdapter
from ralu_cache.report.cross_flops import CrossInputs, CrossShape, block_flops, embedding_flops, mlp_flops


class CrossTextAdapter(TransformerAdapter):
    """Their `blocks` take the image tokens as first argument and return them; after the last one stands `norm_out`.

    A family sets `cross` too, and writes `inputs`.
    """

    cross: CrossShape
    lacks: ClassVar[Mapping[str, str]] = {
        "text attention": "the text has an attention of its own, of which all tokens give it the same share"
    }

    def inputs(self, call: Mapping[str, Any]) -> CrossInputs:
        """What each sample of a call brings along."""
        raise NotImplementedError

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """The text is read by the blocks, and does not run through them: no text tokens."""
        return len(call["hidden_states"]), self.inputs(call).image, 0

    def flops(self, call: Mapping[str, Any]) -> float:
        return self.sparse_flops(call, self.size(call)[1])

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        return len(call["hidden_states"]) * embedding_flops(self.cross, self.inputs(call))

    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        blocks = self.cross.blocks * block_flops(self.cross, self.inputs(call), fresh)
        return self.skipped_flops(call) + len(call["hidden_states"]) * blocks

    def replay_flops(self, call: Mapping[str, Any], image: Sequence[int] = (), text: Sequence[int] = ()) -> float:
        return self.skipped_flops(call) + len(call["hidden_states"]) * mlp_flops(self.cross, sum(image))

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.blocks)
