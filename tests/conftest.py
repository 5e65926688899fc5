"""Shared fixtures; the pipelines themselves are in tests/pipelines.py."""

import gc
from collections.abc import Iterator
from typing import Any

import diffusers
import hypothesis
import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from tests.pipelines import make_pipeline

diffusers.utils.logging.set_verbosity_error()
hypothesis.settings.register_profile("ralu_cache", deadline=None)
hypothesis.settings.load_profile("ralu_cache")


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def pipe() -> Any:
    return make_pipeline()


@pytest.fixture(autouse=True)
def attention_backend() -> Iterator[None]:
    """diffusers' `set_attention_backend` sets it for all models, those of other tests included."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)
