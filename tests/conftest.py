"""Shared fixtures; the pipelines themselves are in tests/pipelines.py."""

from typing import Any

import diffusers
import hypothesis
import pytest

from tests.pipelines import make_pipeline

diffusers.utils.logging.set_verbosity_error()
hypothesis.settings.register_profile("ralu_cache", deadline=None)
hypothesis.settings.load_profile("ralu_cache")


@pytest.fixture
def pipe() -> Any:
    return make_pipeline()
