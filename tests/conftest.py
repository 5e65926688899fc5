"""Shared fixtures; the pipelines themselves are in tests/pipelines.py."""

from typing import Any

import diffusers
import hypothesis
import pytest
import torch

from tests.pipelines import make_pipeline

torch.set_num_threads(2)
diffusers.utils.logging.set_verbosity_error()
hypothesis.settings.register_profile("ralu_cache", deadline=None)
hypothesis.settings.load_profile("ralu_cache")


@pytest.fixture
def pipe() -> Any:
    return make_pipeline()
