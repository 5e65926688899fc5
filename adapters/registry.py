"""The known model families, and which of them a pipeline belongs to."""

from __future__ import annotations

import importlib

from torch import nn

from ralu_cache.adapters.protocols import Adapter

BUILT_IN = (
    "ralu_cache.adapters.flux:FluxAdapter",
    "ralu_cache.adapters.sd3:SD3Adapter",
    "ralu_cache.adapters.qwen:QwenAdapter",
    "ralu_cache.adapters.wan:WanAdapter",
    "ralu_cache.adapters.flux2:Flux2Adapter",
    "ralu_cache.adapters.z_image:ZImageAdapter",
    "ralu_cache.adapters.hunyuan:HunyuanAdapter",
    "ralu_cache.adapters.ltx:LTXAdapter",
    "ralu_cache.adapters.chroma:ChromaAdapter",
    "ralu_cache.adapters.longcat:LongCatAdapter",
    "ralu_cache.adapters.cogview4:CogView4Adapter",
    "ralu_cache.adapters.qwen21:QwenImage21Adapter",
)
_REGISTERED: list[type[Adapter]] = []


def register_adapter(adapter: type[Adapter]) -> type[Adapter]:
    """Add a model family; the latest registered is asked first. Usable as a class decorator."""
    _REGISTERED.insert(0, adapter)
    return adapter


def known_adapters() -> list[type[Adapter]]:
    """The known adapters, in the order in which they are asked."""
    built_in = []
    for path in BUILT_IN:
        module, name = path.split(":")
        built_in.append(getattr(importlib.import_module(module), name))
    return [*_REGISTERED, *built_in]


def supported_pipelines() -> list[str]:
    """Names of the pipeline classes that the known adapters serve."""
    return sorted({name for adapter in known_adapters() for name in adapter.pipelines})


def matching_adapter(pipe: object) -> Adapter | None:
    """The adapter of a pipeline's denoiser, or None where no known one serves it."""
    transformer = getattr(pipe, "transformer", None)
    if isinstance(transformer, nn.Module):
        names = {cls.__name__ for cls in type(pipe).__mro__}
        for adapter in known_adapters():
            if adapter.matches(transformer) and names.intersection(adapter.pipelines):
                return adapter(transformer)
    return None


def find_adapter(pipe: object) -> Adapter:
    """The adapter of a pipeline's denoiser. Raises TypeError naming the pipeline and what is supported."""
    if (adapter := matching_adapter(pipe)) is not None:
        return adapter
    raise TypeError(unserved(pipe))


def unserved(pipe: object, reason: str = "") -> str:
    """That no adapter serves a pipeline, by its class and its denoiser's, why that matters, and which are served."""
    transformer = getattr(pipe, "transformer", None)
    denoiser = "no transformer" if transformer is None else type(transformer).__name__
    if isinstance(transformer, nn.Module) and hasattr(transformer, "_orig_mod"):
        denoiser += f", made by torch.compile(pipe.transformer); use {way_to_compile(transformer)} instead"
    said = f"{type(pipe).__name__} ({denoiser}) is not supported" + (reason and f": {reason}")
    return f"{said}; ralu_cache accelerates in full " + ", ".join(supported_pipelines())


def way_to_compile(transformer: nn.Module) -> str:
    """How its blocks are compiled and nothing around them; some classes name none for diffusers to compile."""
    named = getattr(transformer, "_repeated_blocks", None)
    return "pipe.transformer.compile_repeated_blocks()" if named else "block.compile() for each of its blocks"
