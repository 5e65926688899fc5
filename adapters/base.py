"""The adapter protocol, its registry, and what transformers of image and text tokens have in common."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import take
from ralu_cache.report.flops import TransformerShape, embedding_flops, forward_flops, replay_flops, sparse_flops

if TYPE_CHECKING:
    from ralu_cache.adapters.sparse import SparseProcessor
    from ralu_cache.engine.root import LayoutCall
    from ralu_cache.engine.run import Run
    from ralu_cache.history.attention import Rows


class Removable(Protocol):
    """What was installed in a model, and can be taken out again."""

    def remove(self) -> None: ...


class Processors(Removable, Protocol):
    """Attention processors of ours; `refresh` puts them where others were set, or raises ValueError if it cannot."""

    def refresh(self) -> None: ...


class Gone:
    """What a hook of ours becomes in a copy of the module that it hangs on: nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None


class Hook:
    """A function as a hook of a module, of which copies of the module keep nothing."""

    def __init__(self, function: Any) -> None:
        self.function = function

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Gone, ()


class Adapter(Protocol):
    """One model family. An adapter is made for one denoiser and keeps no state between calls.

    `call` is the denoiser's (or a ControlNet's) arguments by name; `grid` the (rows, columns) of fine tokens.
    adapters/README.md goes through the methods one by one.
    """

    family: str
    default_preset: str
    pipelines: tuple[str, ...]  # those that it serves, and the user's own subclasses of them; others are refused
    patch: int  # latent pixels per token side
    guidance: str  # "calls": the pipelines call with the prompt, then without; "stack": both in one call, without first

    def __init__(self, transformer: Any) -> None: ...

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        """True if this adapter knows the denoiser's class."""

    def check(self, call: Mapping[str, Any], run: Run) -> None:
        """Raise ValueError, with the value and what is accepted, for arguments that cannot be served right."""

    def landmarks(self, transformer: Any) -> list[nn.Module]:
        """The modules in which hooks are installed, `transformer` itself apart: blocks, head, positions."""

    def conditioning(self, call: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """What tells one guidance branch from another: tensors by name, with a row a sample or one for all, and the
        settings in which such calls may differ besides."""

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        """(rows, columns) of fine tokens of the image being made."""

    def frames(self, call: Mapping[str, Any]) -> int:
        """Of a video: its latent frames, which stand one below the other in grid and image; 1 for images."""

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

    def prediction_image(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        """What the pipeline made of full predictions -> (B, C, H, W), coarse tokens' pixels replicated."""

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """Hooks that give each sample of the active call its positions, where the model shares one table."""

    def install_text_attention(self, transformer: Any, current: Callable[[], Run | None]) -> list[RemovableHandle]:
        """Hooks that leave (B, n) image-to-text attention in `run.text_attention` when `run.wants_text_attention`."""

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """(samples, image tokens, text tokens) of a call."""

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

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal: the image tokens (B, n, d) as the first block's first norm modulates them."""

    def rows(self, call: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
        """The call on some samples of its batch, by index."""

    def without_control(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The call without ControlNet samples: a cached residual holds them already."""

    def with_block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor) -> Any:
        """(args, kwargs) of a block with other image tokens."""

    def sparse_control(self, call: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
        """The call with ControlNet samples for the image tokens (k, m) alone, those that run through the blocks."""

    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        """FLOPs of the call when only so many image tokens of each sample, and all text, run through the blocks."""

    def replay_flops(self, call: Mapping[str, Any], image: Sequence[int] = (), text: Sequence[int] = ()) -> float:
        """FLOPs of the call when no attention runs, and each block's MLPs for so many image and text tokens."""

    def install_rows(self, transformer: Any, user: object, current: Callable[[], Rows | None]) -> Processors:
        """Attention processors that let `current()` bring some tokens alone, for one more user of them.

        Raises ValueError where they cannot.
        """


_forward, _embedding = lru_cache(maxsize=256)(forward_flops), lru_cache(maxsize=256)(embedding_flops)


class TextImageAdapter:
    """What the transformers of image and text tokens share (FLUX, SD3); `Adapter` says what each method is for.

    Their blocks take `hidden_states` (image) and `encoder_hidden_states` (text) by name and return (text, image);
    after the last one stands `norm_out`. A family sets `channels`, `shape`, `processor` and the names of its arguments:

    control: those that hold ControlNet samples.
    batched: those whose first axis is the batch, `control` apart; lists of such tensors included.
    conditions: of these, the tensors that tell one guidance branch from another.
    """

    patch: int
    guidance: str = "calls"
    channels: int  # of the latents, as the model returns them
    shape: TransformerShape
    processor: type[SparseProcessor]
    control: tuple[str, ...]
    batched: tuple[str, ...]
    conditions: tuple[str, ...] = (
        "encoder_hidden_states", "encoder_hidden_states_mask", "encoder_hidden_states_image", "pooled_projections",
    )  # fmt: skip

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """(samples, image tokens, text tokens) of a call."""
        raise NotImplementedError

    def text_attention(self, attention: Any, **inputs: Any) -> Tensor:
        """Share of each image token's attention that falls on the text, from the inputs of a block's attention."""
        raise NotImplementedError

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """The pipeline's latents -> (B, C, H, W); images pass unchanged."""
        raise NotImplementedError

    def check(self, call: Mapping[str, Any], run: Run) -> None:
        pass

    def landmarks(self, transformer: Any) -> list[nn.Module]:
        others = (getattr(transformer, name, None) for name in ("norm_out", "pos_embed", "rope"))
        return [*self.blocks(transformer), *(module for module in others if module is not None)]

    def conditioning(self, call: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        tensors = {name: call[name] for name in self.conditions if isinstance(call.get(name), Tensor)}
        return tensors, tuple(self.skipped(call))

    def prediction_image(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        return self.to_image(prediction, layout.fine_grid)

    def frames(self, call: Mapping[str, Any]) -> int:
        return 1

    def skipped(self, call: Mapping[str, Any]) -> Collection[int]:
        """Indices of the blocks that a call leaves out."""
        return ()

    def flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.size(call)
        return batch * _forward(self.shape, image, text, tuple(self.skipped(call)))

    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        batch, image, text = self.size(call)
        return batch * _embedding(self.shape, image, text)

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.transformer_blocks)

    def head(self, transformer: Any) -> nn.Module:
        return transformer.norm_out

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return args[0] if args else kwargs["hidden_states"]  # gradient checkpointing goes by position

    def with_block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor) -> Any:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def sparse_control(self, call: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
        samples = {name: call[name] for name in self.control if call.get(name) is not None}
        return {**call, **{name: mapped(value, lambda part: take(part, tokens)) for name, value in samples.items()}}

    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        batch, image, text = self.size(call)
        return batch * sparse_flops(self.shape, image, text, fresh, self.skipped(call))

    def replay_flops(self, call: Mapping[str, Any], image: Sequence[int] = (), text: Sequence[int] = ()) -> float:
        batch, tokens, words = self.size(call)
        return batch * replay_flops(self.shape, tokens, words, image, text, self.skipped(call))

    def install_rows(self, transformer: Any, user: object, current: Callable[[], Rows | None]) -> Processors:
        return self.processor.install(lambda: self.blocks(transformer), user, current)

    def install_text_attention(self, transformer: Any, current: Callable[[], Run | None]) -> list[RemovableHandle]:
        def capture(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run = current()
            if run is not None and run.wants_text_attention:
                assert run.layout is not None
                run.text_attention = self.text_attention(attention, **kwargs)[:, : run.layout.tokens]

        block = transformer.transformer_blocks[-1]
        return [block.attn.register_forward_pre_hook(Hook(capture), with_kwargs=True)]

    def rows(self, call: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
        batch = len(call["hidden_states"])

        def pick(value: Tensor) -> Tensor:
            return value[rows] if value.ndim and len(value) == batch else value

        given = {name: call[name] for name in self.batched + self.control if call.get(name) is not None}
        chosen = {name: mapped(value, pick) for name, value in given.items()}
        if (attention := call.get("joint_attention_kwargs")) is not None:
            chosen["joint_attention_kwargs"] = {name: mapped(value, pick) for name, value in attention.items()}
        return {**call, **chosen}

    def without_control(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {**call, **dict.fromkeys(self.control)}


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or each of a list of lists of them, through `function`; anything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    return [mapped(part, function) for part in value] if isinstance(value, list | tuple) else value


def attention_heads(attention: Any, hidden: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries and keys of image tokens (B, n, d), and keys of text tokens (B, m, d): (B, n or m, H, d/H)."""

    def heads(projected: Tensor, norm: Callable[[Tensor], Tensor] | None) -> Tensor:
        split = projected.unflatten(-1, (attention.heads, -1))
        return split if norm is None else norm(split)

    return (
        heads(attention.to_q(hidden), attention.norm_q),
        heads(attention.to_k(hidden), attention.norm_k),
        heads(attention.add_k_proj(text), attention.norm_added_k),
    )


def text_share(query: Tensor, key: Tensor, text_key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of each image token's attention that falls on the text, mean over heads: (B, n, H, d) -> (B, n).

    mask: (B, m) bool, the text tokens that count; None for all.
    """
    keys = torch.cat([text_key, key], 1)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.float(), keys.float()) * query.shape[-1] ** -0.5
    if mask is not None:
        scores[..., : mask.shape[1]].masked_fill_(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1)[..., : text_key.shape[1]].sum(-1).mean(1)


_BUILTIN = (
    "ralu_cache.adapters.flux:FluxAdapter",
    "ralu_cache.adapters.sd3:SD3Adapter",
    "ralu_cache.adapters.qwen:QwenAdapter",
    "ralu_cache.adapters.wan:WanAdapter",
)
_REGISTERED: list[type[Adapter]] = []


def register_adapter(adapter: type[Adapter]) -> type[Adapter]:
    """Add a model family; the latest registered is asked first. Usable as a class decorator."""
    _REGISTERED.insert(0, adapter)
    return adapter


def known_adapters() -> list[type[Adapter]]:
    """The known adapters, in the order in which they are asked."""
    builtin = []
    for path in _BUILTIN:
        module, name = path.split(":")
        builtin.append(getattr(importlib.import_module(module), name))
    return [*_REGISTERED, *builtin]


def supported_pipelines() -> list[str]:
    """Names of the pipeline classes that the known adapters serve."""
    return sorted({name for adapter in known_adapters() for name in adapter.pipelines})


def find_adapter(pipe: object) -> Adapter:
    """The adapter of a pipeline's denoiser. Raises TypeError naming the pipeline and what is supported."""
    transformer = getattr(pipe, "transformer", None)
    if isinstance(transformer, nn.Module):
        names = {cls.__name__ for cls in type(pipe).__mro__}
        for adapter in known_adapters():
            if adapter.matches(transformer) and names.intersection(adapter.pipelines):
                return adapter(transformer)
    denoiser = "no transformer" if transformer is None else type(transformer).__name__
    if isinstance(transformer, nn.Module) and hasattr(transformer, "_orig_mod"):
        denoiser += ", made by torch.compile(pipe.transformer); use pipe.transformer.compile_repeated_blocks() instead"
    raise TypeError(
        f"{type(pipe).__name__} ({denoiser}) is not supported; ralu_cache accelerates "
        + ", ".join(supported_pipelines())
    )
