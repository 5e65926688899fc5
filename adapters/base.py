"""The adapter protocol and its registry."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.canvas import TokenLayout

if TYPE_CHECKING:
    from ralu_cache.hooks import LayoutCall
    from ralu_cache.run import Run


class Adapter(Protocol):
    """One model family. An adapter is made for one denoiser and keeps no state between calls.

    `call` is the denoiser's (or a ControlNet's) arguments by name; `grid` the (rows, columns) of fine tokens.
    """

    family: str
    default_preset: str
    pipelines: tuple[str, ...]
    patch: int  # latent pixels per token side

    def __init__(self, transformer: Any) -> None: ...

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        """True if this adapter knows the denoiser's class."""

    def sigma(self, call: Mapping[str, Any]) -> Tensor:
        """The call's noise level in [0, 1]; the first element counts."""

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        """(rows, columns) of fine tokens of the image being made."""

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        """The latent image (B, C, H, W) in the call, without conditioning channels or reference tokens."""

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """The pipeline's latents -> (B, C, H, W); images pass unchanged."""

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        """(B, C, H, W) -> the form of `like`."""

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        """The full call -> the call on the layout's `tokens` (B, n, C*p*p) at `positions` (B, n, 2)."""

    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        """The short prediction -> the full one, coarse tokens replicated."""

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """Hooks that give each sample of the active call its positions, where the model shares one table."""

    def install_text_attention(self, transformer: Any, current: Callable[[], Run | None]) -> list[RemovableHandle]:
        """Hooks that leave (B, n) image-to-text attention in `run.text_attention` when `run.wants_text_attention`."""

    def flops(self, call: Mapping[str, Any]) -> float:
        """FLOPs of one denoiser call with these arguments."""

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        """FLOPs of the same call when all blocks are passed over."""

    def blocks(self, transformer: Any) -> list[nn.Module]:
        """The blocks, in the order in which they run."""

    def head(self, transformer: Any) -> nn.Module:
        """The first module after the blocks; the image tokens are its first positional argument."""

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The image tokens (B, n, d) among a block's arguments."""

    def pass_block(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a block would return if it changed nothing."""

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal: the image tokens (B, n, d) as the first block's first norm modulates them."""

    def rows(self, call: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
        """The call on some samples of its batch, by index."""

    def without_control(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The call without ControlNet samples: a cached residual holds them already."""


_BUILTIN = ("ralu_cache.adapters.flux:FluxAdapter",)
_REGISTERED: list[type[Adapter]] = []


def register_adapter(adapter: type[Adapter]) -> type[Adapter]:
    """Add a model family; the latest registered is asked first. Usable as a class decorator."""
    _REGISTERED.insert(0, adapter)
    return adapter


def _adapters() -> list[type[Adapter]]:
    builtin = []
    for path in _BUILTIN:
        module, name = path.split(":")
        builtin.append(getattr(importlib.import_module(module), name))
    return [*_REGISTERED, *builtin]


def supported_pipelines() -> list[str]:
    """Names of the pipeline classes that the known adapters serve."""
    return sorted({name for adapter in _adapters() for name in adapter.pipelines})


def find_adapter(pipe: object) -> Adapter:
    """The adapter of a pipeline's denoiser. Raises TypeError naming the pipeline and what is supported."""
    transformer = getattr(pipe, "transformer", None)
    if isinstance(transformer, nn.Module):
        for adapter in _adapters():
            if adapter.matches(transformer):
                return adapter(transformer)
    denoiser = "no transformer" if transformer is None else type(transformer).__name__
    if isinstance(transformer, nn.Module) and hasattr(transformer, "_orig_mod"):
        denoiser += ", made by torch.compile(pipe.transformer); use pipe.transformer.compile_repeated_blocks() instead"
    raise TypeError(
        f"{type(pipe).__name__} ({denoiser}) is not supported; ralu_cache accelerates "
        + ", ".join(supported_pipelines())
    )
