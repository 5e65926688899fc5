"""Attention processors through which a call may bring some of its tokens alone: see `ralu_cache.history.attention`.

While no call of ours is under way they are the stock processors, which do the work. With all tokens they compute what
the stock ones compute, bit for bit, and keep the keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from ralu_cache.history.attention import Attention, Rows

Current = Callable[[], Rows | None]


class SparseProcessor:
    """Stands in for the `stock` processor of one attention layer, named `layer`."""

    accepted: ClassVar[tuple[type, ...]]  # of stock processor
    names: ClassVar[tuple[str, ...]] = ("attn", "attn2")  # of the layers in which image tokens attend to each other

    def __init__(self, stock: Any, layer: str, current: Current) -> None:
        if type(stock) not in self.accepted:
            accepted = " and ".join(kind.__name__ for kind in self.accepted)
            raise ValueError(
                f"attention processor {type(stock).__name__} is not supported with row-sparse recompute, only "
                f"{accepted}; unload IP-adapters and custom processors, or use another temporal policy"
            )
        self.stock: Any = stock
        self.layer, self.current = layer, current
        self.users: set[object] = set()

    def __reduce__(self) -> Any:
        """A copy of the model has the stock processor."""
        return _itself, (self.stock,)

    @classmethod
    def install(cls, blocks: Callable[[], list[nn.Module]], user: object, current: Current) -> Installed:
        """Put one in every attention layer of the blocks. Raises ValueError where another is than the stock one."""

        def layers() -> list[tuple[str, Any]]:
            return [
                (f"{number}.{name}", getattr(block, name))
                for number, block in enumerate(blocks())
                for name in cls.names
                if getattr(block, name, None) is not None
            ]

        return Installed(layers, cls, user, current)

    def dispatched(self, mask: Tensor | None) -> Attention:
        """Stock attention, by the backend that the stock processor is set to."""
        return partial(
            dispatch_attention_fn, attn_mask=mask, backend=self.stock._attention_backend,
            parallel_config=self.stock._parallel_config,
        )  # fmt: skip

    def text_first(self, attn: Any, joint: Tensor, text: int) -> tuple[Tensor, Tensor]:
        """What a joint attention gives (image, text), of a sequence (k, m + n, d) with so many text tokens before."""
        text_out, image_out = joint[:, :text], joint[:, text:]
        return attn.to_out[1](attn.to_out[0](image_out.contiguous())), attn.to_add_out(text_out.contiguous())

    @property
    def _attention_backend(self) -> Any:
        """As diffusers sets it on processors; kept by the stock one."""
        return self.stock._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.stock._attention_backend = backend


def _itself(stock: Any) -> Any:
    return stock


class Installed:
    """Processors of ours in some attention layers, for one user of them; the last to leave puts the stock ones back."""

    def __init__(
        self,
        layers: Callable[[], list[tuple[str, Any]]],
        processor: type[SparseProcessor],
        user: object,
        current: Current,
    ) -> None:
        self._layers, self._processor, self._user, self._current = layers, processor, user, current
        self._taken: list[Any] = []
        self.refresh()

    def refresh(self) -> None:
        """Put ours where others were set since. Raises ValueError, changing nothing, where they can't stand in."""
        found = self._layers()
        ours = [
            layer.processor
            if isinstance(layer.processor, SparseProcessor)
            else self._processor(layer.processor, name, self._current)
            for name, layer in found
        ]  # may refuse: before any is set
        self._taken = [layer for _, layer in found]
        for layer, mine in zip(self._taken, ours, strict=True):
            mine.users.add(self._user)
            if layer.processor is not mine:
                layer.set_processor(mine)

    def remove(self) -> None:
        for layer in self._taken:
            mine = layer.processor
            if isinstance(mine, SparseProcessor):
                mine.users.discard(self._user)
                if not mine.users:
                    layer.set_processor(mine.stock)
        self._taken = []
