"""Adapters: what the library has to know of each model family. The only place that names model classes.

`protocols` says what is asked of a family; nothing here imports `engine`, which knows families by that alone.
"""

from ralu_cache.adapters.protocols import Adapter
from ralu_cache.adapters.registry import find_adapter, known_adapters, register_adapter, supported_pipelines

__all__ = ["Adapter", "find_adapter", "known_adapters", "register_adapter", "supported_pipelines"]
