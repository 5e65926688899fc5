"""What transformers share whose image tokens attend to themselves and then to the text, which has no blocks (Wan)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.base import TextImageAdapter
from ralu_cache.report.cross_flops import CrossInputs, CrossShape, block_flops, embedding_flops, mlp_flops

if TYPE_CHECKING:
    from ralu_cache.engine.run import Run


class CrossTextAdapter(TextImageAdapter):
    """Their `blocks` take the image tokens as first argument and return them; after the last one stands `norm_out`.

    A family sets `cross` (in place of `shape`), `processor` and `batched`, and writes `inputs`.
    """

    cross: CrossShape
    control = ()

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

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return args[0]

    def with_block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor) -> Any:
        return (hidden, *args[1:]), kwargs

    def install_text_attention(self, transformer: Any, current: Callable[[], Run | None]) -> list[RemovableHandle]:
        raise ValueError(
            "regions='text-attention' is not supported where the text has an attention of its own (Wan): all tokens "
            "give it the same share; use 'latent-gradient' or another scorer"
        )
