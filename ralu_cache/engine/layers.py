"""Layer caching: stock blocks run, but what their attention and MLPs give may come from a `LayerCache`.

The blocks do all the rest themselves, with the current time embedding: norms, gates, residuals. The decision is taken
at the root and hangs on the call that is under way; the submodules only obey. They wear a class of their own for it,
whose `__call__` stands before all hooks and before whatever replaced their `forward`, so that offload hooks, LoRA and
the like may come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ralu_cache.adapters.protocols import Layers, Measures
from ralu_cache.adapters.sites import Role, Site
from ralu_cache.engine.context import current
from ralu_cache.engine.disguise import occupy, vacate
from ralu_cache.history.layer_cache import Fresh, LayerCache
from ralu_cache.history.residuals import History
from ralu_cache.plane.token_map import take

_SITE = "_ralu_cache_site"  # in the instance of a submodule: which site of its block it is

Forecast = Callable[[History], Tensor]
"""A site's history, (level (k,), values (k, L, d)) newest first -> its output (k, L, d)."""


class Mode(Protocol):
    """What the sites do in one denoiser call."""

    def forget(self) -> None:
        """Hold nothing any more."""

    def call(self, site: Site, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a site in place of `forward(*args, **kwargs)`."""


@dataclass(frozen=True, eq=False)
class _Record:
    cache: LayerCache
    text: int
    samples: Tensor | None
    inner: bool
    projections: dict[Site, Measures]
    given: dict[Site, dict[str, Tensor]] = field(default_factory=dict)  # what projections gave, until it is measured

    def forget(self) -> None:
        self.given.clear()

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
    levels: Sequence[Tensor] = ()

    def forget(self) -> None:
        pass

    def call(self, site: Site, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if site.role in (Role.ATTENTION, Role.CROSS_ATTENTION, Role.PARALLEL):
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
        return self.forecast(self.cache.history(key, self.levels, self.samples))

    def _index(self, layer: int, part: str) -> Tensor | None:
        """(k, m) int64: the fresh rows of a sequence of image, text or both; None for none."""
        image = None if self.image is None or part == "text" else self.image.at(layer)
        context = None if self.context is None or part == "image" else self.context.at(layer)
        if image is not None and part == "joint":
            image = image + self.text
        rows = [index for index in (context, image) if index is not None]
        return torch.cat(rows, 1) if rows else None


def _mode() -> Mode | None:
    """What the denoiser call that is under way in this context wants of its layers."""
    call = current()
    state = None if call is None else call.working
    return state.stack.mode if state is not None and state.ours else None


def _given() -> dict[Site, dict[str, Tensor]] | None:
    mode = _mode()
    return mode.given if isinstance(mode, _Record) else None


def _obeying(stock: Any) -> dict[str, Any]:
    """A submodule that does what the mode says; without one, what it always did."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        mode = _mode()
        if mode is None:
            return stock.__call__(self, *args, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return stock.__call__(self, *args, **kwargs)

        return mode.call(vars(self)[_SITE], forward, args, kwargs)

    return {"__call__": __call__}


class LayerStack:
    """The attention and MLPs of all blocks of a transformer, for one user; it makes the modes of their calls.

    `record()`: as stock, and keep what every site gave. `replay()`: nothing runs but the MLP rows of chosen tokens; all
    else comes from the cache. `forecast()`: nothing runs. Without a mode they are as stock, bit for bit.

    cache: one branch's, to be checked against the layout and begun by the caller's `record`; text: how many text
    tokens the call has; samples: (k,) int64, those of the cache's batch that the call is made for, None for all.
    ControlNet samples are added between blocks, so a replay needs them.

    measures: of "key", "value", "attention", those that `record` keeps of the tokens (see `Layers.measures`).
    chooses: False if no replay will ever choose tokens; then less is kept of single blocks.

    Raises ValueError for blocks of another make.
    """

    def __init__(
        self,
        transformer: nn.Module,
        adapter: Layers,
        user: object,
        measures: Sequence[str] = (),
        chooses: bool = True,
    ) -> None:
        self._transformer, self._adapter, self._user = transformer, adapter, user
        self._measures, self._chooses = tuple(measures), chooses
        self._sites: list[tuple[Site, nn.Module]] = []
        self._watched: list[nn.Module] = []
        self._projections: dict[Site, Measures] = {}
        self.refresh()

    @property
    def singles(self) -> tuple[bool, ...]:
        """Of each layer, whether it is a single block."""
        single = {site.layer for site, _ in self._sites if site.role is Role.PROJ_MLP}
        return tuple(layer in single for layer in range(len(self._adapter.blocks(self._transformer))))

    def refresh(self) -> None:
        """Reach into the submodules that are there now: LoRA replaces some. Raises what `Layers.sites` does."""
        sites = self._adapter.sites(self._transformer)  # this may refuse, so it comes first
        watched = [module for site, attention in self._attentions(sites) for module in attention.modules()]
        known = [*(module for _, module in self._sites), *self._watched]
        if [*map(id, known)] == [*map(id, [*(module for _, module in sites), *watched])]:
            return
        projections = {
            site: self._adapter.measures(module, site, self._measures, _given)
            for site, module in self._attentions(sites)
        }
        self.remove()
        self._sites, self._watched, self._projections = sites, watched, projections
        for site, module in sites:
            vars(module)[_SITE] = site
            occupy(module, self._user, _obeying)

    def _attentions(self, sites: Sequence[tuple[Site, nn.Module]]) -> list[tuple[Site, nn.Module]]:
        """Those whose projections are to be measured."""
        roles = (Role.ATTENTION, Role.INNER_ATTENTION) if self._measures else ()
        return [(site, module) for site, module in sites if site.role in roles]

    def record(self, cache: LayerCache, text: int, samples: Tensor | None = None, keep: int = 1) -> Mode:
        """Run as stock, and keep the outputs as the newest of `keep` in the cache."""
        self._refuse_chunks()
        cache.begin(samples, keep)
        return _Record(cache, text, samples, self._chooses, self._projections)

    def replay(
        self,
        cache: LayerCache,
        text: int,
        samples: Tensor | None = None,
        image: Fresh | None = None,
        context: Fresh | None = None,
    ) -> Mode:
        """Take all outputs from the cache, but run the MLPs for the fresh tokens and put theirs in their places.

        image, context: image tokens, and text tokens, to run; None for none. Attention is fetched for these too.
        """
        self._refuse_chunks()
        return _Replay(cache, text, samples, image, context)

    def forecast(
        self,
        cache: LayerCache,
        levels: Sequence[Tensor],
        forecast: Forecast,
        text: int,
        samples: Tensor | None = None,
    ) -> Mode:
        """Take all outputs from `forecast`, which is given each site's history; the cache stays as it is.

        levels: (B,) of each pass that is kept, newest first.
        """
        self._refuse_chunks()
        return _Replay(cache, text, samples, None, None, forecast, levels)

    def remove(self) -> None:
        for _, module in self._sites:
            vacate(module, self._user)
            if type(module).__call__ is nn.Module.__call__:  # nobody else's any more
                vars(module).pop(_SITE, None)
        for projections in self._projections.values():
            projections.remove()
        self._sites, self._watched, self._projections = [], [], {}

    def _refuse_chunks(self) -> None:
        """Raises ValueError where a block calls its MLP piece by piece: no piece knows which rows it has."""
        for block in self._adapter.blocks(self._transformer):
            if (size := getattr(block, "_chunk_size", None)) is not None:
                raise ValueError(
                    f"layer caching with a feed-forward chunk size of {size} is not supported: call "
                    "transformer.disable_forward_chunking()"
                )
