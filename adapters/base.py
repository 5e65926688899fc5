"""What the built-in families share: transformers with a stack of blocks, and those with a text stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.heads import attention_heads, text_mask, text_share
from ralu_cache.adapters.hooks import Hook
from ralu_cache.adapters.layers import Projections, find_sites
from ralu_cache.adapters.protocols import Adapter, Blocks, Cost, Layers, Processors, TextAttention, Tokens
from ralu_cache.adapters.rotary import turned
from ralu_cache.adapters.sites import Site
from ralu_cache.adapters.sparse import SparseProcessor
from ralu_cache.history.attention import Rows
from ralu_cache.plane.token_map import take
from ralu_cache.report.flops import StackCost


class StackAdapter(Adapter, Blocks, Cost):
    """A transformer whose blocks are followed by `norm_out`. A family writes `rows`, and sets, besides what `Adapter`
    asks for:

    channels: of the latents, as the model returns them.
    cost: what each sample of a call costs, read off the model's layers (`counted.py`).
    control: the arguments that hold ControlNet samples.
    batched: those whose first axis is the batch, `control` apart; lists of such tensors included.
    conditions: the tensors that tell one guidance branch from another.
    """

    channels: int
    cost: StackCost
    control: tuple[str, ...] = ()
    batched: tuple[str, ...]
    conditions: tuple[str, ...] = (
        "encoder_hidden_states", "encoder_hidden_states_mask", "encoder_hidden_states_image", "pooled_projections",
    )  # fmt: skip

    def landmarks(self, module: Any) -> list[nn.Module]:
        others = (getattr(module, name, None) for name in ("norm_out", "pos_embed", "rope"))
        return [*self.blocks(module), *(module for module in others if module is not None)]

    def conditioning(self, call: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        tensors = {}
        for name in self.conditions:
            if isinstance(found := call.get(name), Tensor):
                tensors[name] = found
        return tensors, tuple(self.skipped(call))

    def skipped(self, call: Mapping[str, Any]) -> Collection[int]:
        """Indices of the blocks that a call leaves out (skip-layer guidance)."""
        return ()

    def select(self, call: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        batch = len(call["hidden_states"])

        def pick(value: Tensor) -> Tensor:
            return value[samples] if value.ndim and len(value) == batch else value

        given = {name: call[name] for name in self.batched + self.control if call.get(name) is not None}
        chosen = {name: mapped(value, pick) for name, value in given.items()}
        if (attention := call.get("joint_attention_kwargs")) is not None:
            chosen["joint_attention_kwargs"] = {name: mapped(value, pick) for name, value in attention.items()}
        return {**call, **chosen}

    def head(self, transformer: Any) -> nn.Module:
        return transformer.norm_out

    def without_control(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {**call, **dict.fromkeys(self.control)}

    def rows(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """Samples, and the image and text tokens of each that cost something."""
        raise NotImplementedError

    def besides(self, call: Mapping[str, Any]) -> int:
        """What all samples of a call cost outside of the blocks, where that is not the same for every call."""
        return 0

    def flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.rows(call)
        return batch * self._cost(call).forward(image, text) + self.besides(call)

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.rows(call)
        return batch * self.cost.skipped(image, text) + self.besides(call)

    def counted_share(self, image: int, text: int) -> float:
        """`coarse_share` of so many text tokens, by the model's own FLOPs; where nothing lies `besides`."""
        return self.cost.forward(-(-image // 4), text) / self.cost.forward(image, text)

    def _cost(self, call: Mapping[str, Any]) -> StackCost:
        return self.cost.without(self.skipped(call))


class BlocksAdapter(StackAdapter, Layers):
    """One of which some tokens or layers can be computed alone. A family writes `size`, and sets besides:

    processor: its attention processor through which a call may bring some tokens alone.
    """

    processor: type[SparseProcessor]

    def with_block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor) -> Any:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def sparse_control(self, call: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
        samples = {name: call[name] for name in self.control if call.get(name) is not None}
        return {**call, **{name: mapped(value, lambda part: take(part, tokens)) for name, value in samples.items()}}

    def install_processors(self, transformer: Any, user: object, current: Callable[[], Rows | None]) -> Processors:
        return self.processor.install(lambda: self.blocks(transformer), user, current)

    def sites(self, transformer: Any) -> list[tuple[Site, nn.Module]]:
        return find_sites(self.blocks(transformer))

    def measures(
        self,
        attention: nn.Module,
        site: Site,
        names: Sequence[str],
        given: Callable[[], dict[Site, dict[str, Tensor]] | None],
    ) -> Projections:
        return Projections(attention, site, names, given)

    def rows(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        return self.size(call)

    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        batch, image, text = self.rows(call)
        return batch * self._cost(call).forward(image, text, fresh) + self.besides(call)

    def replay_flops(self, call: Mapping[str, Any], image: Sequence[int] = (), text: Sequence[int] = ()) -> float:
        batch, tokens, words = self.rows(call)
        return batch * self._cost(call).replay(tokens, words, image, text) + self.besides(call)


class TransformerAdapter(BlocksAdapter, Tokens):
    """One that runs on other sets of tokens too."""


class TextImageAdapter(TransformerAdapter, TextAttention):
    """Transformers of image and text tokens (FLUX, SD3, Qwen-Image).

    Their `transformer_blocks` take `hidden_states` (image) and `encoder_hidden_states` (text) by name and return (text,
    image). A family writes `size` too.
    """

    def text_attention(self, attention: Any, **inputs: Any) -> Tensor:
        """Share of each image token's attention that falls on the text (B, n), from the inputs of an attention."""
        query, key, text_key = attention_heads(attention, inputs["hidden_states"], inputs["encoder_hidden_states"])
        rotary, text = inputs.get("image_rotary_emb"), text_key.shape[1]
        keys = turned(text_key, key, rotary)
        queries = turned(torch.zeros_like(text_key), query, rotary)[:, text:]
        return text_share(queries, keys[:, text:], keys[:, :text], text_mask(inputs, text))

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.transformer_blocks)

    def install_text_attention(
        self, transformer: Any, wanted: Callable[[], bool], keep: Callable[[Tensor], None]
    ) -> list[RemovableHandle]:
        def capture(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if wanted():
                keep(self.text_attention(attention, **kwargs))

        block = transformer.transformer_blocks[-1]
        return [block.attn.register_forward_pre_hook(Hook(capture), with_kwargs=True)]


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or each of a list of lists of them, through `function`; anything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    return [mapped(part, function) for part in value] if isinstance(value, list | tuple) else value
