"""The hooks in whatever a pipeline calls: its denoiser or two, and its ControlNets."""

from __future__ import annotations

from typing import Any

from torch import nn

from ralu_cache.adapters.protocols import Adapter, Layers, Probed
from ralu_cache.adapters.registry import way_to_compile
from ralu_cache.engine.disguise import stock_of
from ralu_cache.engine.experts import denoisers_of
from ralu_cache.engine.ranked import check_ranks
from ralu_cache.engine.root import RootHook
from ralu_cache.temporal.policy import Policy


class Denoisers:
    """The root hooks of one handle. Raises what `check` does, and ValueError for what the policy can't reach into.

    policies: of each denoiser, what reuses something of it; reuses: one does, or forecasts do outside of the model.
    probed: nothing is known of their blocks until a call was probed.
    """

    def __init__(
        self, family: type[Adapter], policies: tuple[Policy | None, Policy | None], handle: Any, reuses: bool
    ) -> None:
        self._family, self._policies, self._handle, self._reuses = family, policies, handle, reuses
        self.probed = issubclass(family, Probed)  # asked once: a protocol takes its time
        self.roots: list[RootHook] = []

    @property
    def adapter(self) -> Adapter:
        return self.roots[0].adapter

    def refresh(self, pipe: Any) -> None:
        """Hook what the pipeline is made of now. Raises, before anything is changed, for what can't be served."""
        transformers = [*zip(denoisers_of(pipe), self._policies, strict=False)]
        for transformer, policy in transformers:
            check(transformer, self._family, policy, self._reuses)
            if policy is not None or self._handle.staged:
                check_ranks(transformer, self._family, policy, self._handle.wants_text_attention)
        known = {id(root.module): root for root in self.roots}
        roots: list[RootHook] = []
        try:
            for transformer, policy in transformers:
                roots.append(self._root(transformer, policy, known))
            for number, net in enumerate([] if self.probed else _controlnets(pipe)):
                root = known.get(id(net))
                roots.append(root or RootHook(net, roots[0].adapter, self._handle, number=number))
        except BaseException:
            for root in roots:
                if id(root.module) not in known:
                    root.remove()
            raise
        for root in self.roots:
            if root not in roots:
                root.remove()
        self.roots = roots

    def _root(self, transformer: Any, policy: Policy | None, known: dict[int, RootHook]) -> RootHook:
        root = known.get(id(transformer))
        if root is None:
            return RootHook(transformer, self._family(transformer), self._handle, policy)
        root.refresh()
        return root

    def remove(self) -> None:
        for root in self.roots:
            root.remove()
        self.roots = []

    def answerer(self, module: Any) -> Any:
        """What may answer for a denoiser of ours, or None."""
        return next((root.answer for root in self.roots if root.module is module), None)


def check(transformer: Any, family: type[Adapter], policy: Policy | None, reuses: bool) -> None:
    """Raises RuntimeError, TypeError or ValueError for a denoiser that can't be accelerated as it is now."""
    if hasattr(transformer, "_orig_mod") or getattr(transformer, "_compiled_call_impl", None) is not None:
        raise RuntimeError(
            "the whole transformer was compiled, which compiles ralu_cache's hooks away; use "
            f"{way_to_compile(transformer)} instead"
        )
    if not (isinstance(transformer, nn.Module) and family.matches(transformer)):
        raise TypeError(
            f"pipe.transformer is a {stock_of(type(transformer)).__name__} now, which the {family.family} adapter does "
            "not know; call accelerate(pipe, ...) again"
        )
    if reuses and (cache := _stock_cache(transformer)) is not None:
        raise ValueError(
            f"diffusers' own {cache} is enabled on the transformer, and two caches do not stack; keep it with "
            "temporal=None, or call pipe.transformer.disable_cache() (or remove its hooks) first"
        )
    if policy is not None and issubclass(family, Probed) and any(map(_is_compiled, transformer.modules())):
        raise RuntimeError(
            f"blocks of {stock_of(type(transformer)).__name__} are compiled, and a probe cannot look into those; "
            "call the pipeline without compile_repeated_blocks(), or use temporal='forecast:3'"
        )
    if policy is None or policy.caches == "stack":
        return
    adapter = family(transformer)
    assert isinstance(adapter, Layers)
    if any(map(_is_compiled, adapter.blocks(transformer))):
        raise RuntimeError(
            "a temporal policy that reaches into the blocks (row-sparse recompute, layer caches) does not work in "
            "compiled ones, which would be compiled again and again; leave out compile_repeated_blocks(), or use "
            "teacache, seacache or taylorseer"
        )


def _stock_cache(transformer: Any) -> str | None:
    """The name of a cache of diffusers' own: enabled, or applied by a function that tells the model nothing of it."""
    if getattr(transformer, "is_cache_enabled", False):
        return type(transformer._cache_config).__name__
    modules, registries = [transformer], []
    for module in modules:  # not by `modules()`, which takes five times as long: there are thousands, at each call
        if module is not None:
            modules += module._modules.values()
            registries.append(vars(module).get("_diffusers_hook"))
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return next((type(hook).__name__ for hook in hooks if hook._is_stateful), None)


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def _controlnets(pipe: Any) -> list[Any]:
    controlnet = getattr(pipe, "controlnet", None)
    return list(getattr(controlnet, "nets", None) or ([controlnet] if controlnet is not None else []))
