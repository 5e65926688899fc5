"""Layer caching: stock blocks run, but what their attention and MLPs give may come from a `LayerCache`.

The blocks do all the rest themselves, with the current time embedding: norms, gates, residuals. The decision is taken
at the root; the submodules only obey.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from ralu_cache.adapters.base import Adapter
from ralu_cache.adapters.layers import Projections, Role, Site, find_sites, is_single
from ralu_cache.layer_cache import Fresh, LayerCache
from ralu_cache.temporal.forecast import History
from ralu_cache.token_map import take

_NAME = "ralu_cache_layer"

Forecast = Callable[[History], Tensor]
"""A site's history, (level (k,), values (k, L, d)) newest first -> its output (k, L, d)."""


class Mode(Protocol):
    """What the sites do in one denoiser call."""

    def call(self, site: Site, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a site in place of `forward(*args, **kwargs)`."""


@dataclass(frozen=True, eq=False)
class _Record:
    cache: LayerCache
    text: int
    samples: Tensor | None
    inner: bool
    projections: dict[Site, Projections]

    def call(self, site: Site, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = forward(*args, **kwargs)
        if site in self.projections:
            self.projections[site].keep(self.cache, self.samples, self.text, kwargs)
        if site.role is Role.INNER_ATTENTION and not self.inner:
            return output
        outputs = output if isinstance(output, tuple) else (output,)
        offsets = {"image": 0, "text": None, "joint": self.text}
        for number, (part, values) in enumerate(zip(site.parts, outputs, strict=False)):
            if part in offsets:
                self.cache.store(site.key(number), values, offsets[part], self.samples)
        return output


@dataclass(frozen=True, eq=False)
class _Replay:
    cache: LayerCache
    text: int
    samples: Tensor | None
    image: Fresh | None
    context: Fresh | None
    forecast: Forecast | None = None

    def call(self, site: Site, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if site.role in (Role.ATTENTION, Role.CROSS_ATTENTION):
            return self._attention(site)
        index = self._index(site.layer, site.parts[0] if site.role is Role.MLP else "joint")
        hidden = args[0] if args else kwargs["hidden_states"]
        if index is None:  # a single block's `proj_out` does not look at what it is given
            return self._output(site.key()) if site.role in (Role.MLP, Role.PROJ_OUT) else hidden[:, :0]
        match site.role:
            case Role.INNER_ATTENTION:
                return take(self.cache.newest(site.key(), self.samples), index)
            case Role.PROJ_MLP:
                return forward(take(hidden, index))
            case Role.PROJ_OUT:
                fresh = forward(hidden)
            case _:
                fresh = forward(take(hidden, index))
        return self.cache.overwrite(site.key(), index, fresh, self.samples)

    def _attention(self, site: Site) -> Any:
        """Image alone, or a tuple with text; a block that drops its text does not look at it."""
        if len(site.parts) == 1:
            return self._output(site.key())
        image, text = self._output(site.key()), None if site.parts[1] == "unused" else self._output(site.key(1))
        adapted = site.key(2)  # what an IP-adapter adds, if there is one
        return (image, text, self._output(adapted)) if adapted in self.cache.sites else (image, text)

    def _output(self, key: str) -> Tensor:
        if self.forecast is None:
            return self.cache.newest(key, self.samples)
        return self.forecast(self.cache.history(key, self.samples))

    def _index(self, layer: int, part: str) -> Tensor | None:
        """(k, m) int64: the fresh rows of a sequence of image, text or both; None for none."""
        image = None if self.image is None or part == "text" else self.image.at(layer)
        context = None if self.context is None or part == "image" else self.context.at(layer)
        if image is not None and part == "joint":
            image = image + self.text
        rows = [index for index in (context, image) if index is not None]
        return torch.cat(rows, 1) if rows else None


class _Obey(ModelHook):
    """A submodule that does what the stack's mode says; at rest, what it always did."""

    def __init__(self, stack: LayerStack, site: Site) -> None:
        super().__init__()
        self.stack, self.site = stack, site

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = self.fn_ref.original_forward
        if self.stack.mode is None:
            return forward(*args, **kwargs)
        return self.stack.mode.call(self.site, forward, args, kwargs)


class LayerStack:
    """The attention and MLPs of all blocks of a transformer; before each call, say what they shall do in it.

    `rest()`: as stock, bit for bit, holding nothing. `record()`: as stock, and keep what every site gave. `replay()`:
    nothing runs but the MLP rows of chosen tokens; all else comes from the cache. `forecast()`: nothing runs.

    cache: one branch's, to be checked against the layout and begun by the caller's `record`; text: how many text
    tokens the call has; samples: (k,) int64, those of the cache's batch that the call is made for, None for all.
    ControlNet samples are added between blocks, so a replay needs them.

    measures: of "key", "value", "attention", those that `record` keeps of the tokens (see `Projections`).
    chooses: False if no replay will ever choose tokens; then less is kept of single blocks.

    Raises ValueError for blocks of another make.
    """

    def __init__(
        self, transformer: nn.Module, adapter: Adapter, measures: Sequence[str] = (), chooses: bool = True
    ) -> None:
        self.mode: Mode | None = None
        self._chooses = chooses
        self._blocks = adapter.blocks(transformer)
        sites = find_sites(self._blocks)  # this may refuse, so it comes first
        self._projections: dict[Site, Projections] = {}
        if measures:
            attentions = [pair for pair in sites if pair[0].role in (Role.ATTENTION, Role.INNER_ATTENTION)]
            for site, module in attentions:
                self._projections[site] = Projections(module, site, measures, lambda: isinstance(self.mode, _Record))
        self._modules = [module for _, module in sites]
        for site, module in sites:
            HookRegistry.check_if_exists_or_initialize(module).register_hook(_Obey(self, site), _NAME)

    @property
    def singles(self) -> tuple[bool, ...]:
        """Of each layer, whether it is a single block."""
        return tuple(is_single(block) for block in self._blocks)

    def rest(self) -> None:
        """Be a stock stack, and hold nothing."""
        self.mode = None
        for projections in self._projections.values():
            projections.forget()

    def record(self, cache: LayerCache, sigma: float, text: int, samples: Tensor | None = None, keep: int = 1) -> None:
        """Run as stock at level `sigma`, and keep the outputs as the newest of `keep` in the cache."""
        self._refuse_chunks()
        cache.begin(sigma, samples, keep)
        self.mode = _Record(cache, text, samples, self._chooses, self._projections)

    def replay(
        self,
        cache: LayerCache,
        text: int,
        samples: Tensor | None = None,
        image: Fresh | None = None,
        context: Fresh | None = None,
    ) -> None:
        """Take all outputs from the cache, but run the MLPs for the fresh tokens and put theirs in their places.

        image, context: image tokens, and text tokens, to run; None for none. Attention is fetched for these too.
        """
        self._refuse_chunks()
        self.mode = _Replay(cache, text, samples, image, context)

    def forecast(self, cache: LayerCache, forecast: Forecast, text: int, samples: Tensor | None = None) -> None:
        """Take all outputs from `forecast`, which is given each site's history; the cache stays as it is."""
        self._refuse_chunks()
        self.mode = _Replay(cache, text, samples, None, None, forecast)

    def remove(self) -> None:
        self.rest()
        for module in self._modules:
            HookRegistry.check_if_exists_or_initialize(module).remove_hook(_NAME, recurse=False)
        for projections in self._projections.values():
            projections.remove()

    def _refuse_chunks(self) -> None:
        """Raises ValueError where a block calls its MLP piece by piece: no piece knows which rows it has."""
        for block in self._blocks:
            if (size := getattr(block, "_chunk_size", None)) is not None:
                raise ValueError(
                    f"layer caching with a feed-forward chunk size of {size} is not supported: call "
                    "transformer.disable_forward_chunking()"
                )
