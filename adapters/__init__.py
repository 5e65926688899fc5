"""Adapters: what the library has to know of each model family. The only place that names model classes."""

from ralu_cache.adapters.base import Adapter, find_adapter, known_adapters, register_adapter, supported_pipelines

__all__ = ["Adapter", "find_adapter", "known_adapters", "register_adapter", "supported_pipelines"]
