"""Shared fixtures; the pipelines themselves are in tests/pipelines.py."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import hypothesis
import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from tests.covering import mark_covering
from tests.pipelines import make_pipeline
from tests.slowness import FAR_TOO_SLOW, SECONDS, processor_seconds, unmarked

diffusers.utils.logging.set_verbosity_error()
hypothesis.settings.register_profile("ralu_cache", deadline=None)
hypothesis.settings.load_profile("ralu_cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_covering(items)


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append((SECONDS, processor_seconds() - before))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tells of slow tests that aren't marked; with pytest-xdist, in the process that hears of all tests."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    passed = terminal.stats.get("passed", ()) if terminal is not None else ()
    found = unmarked(passed)
    if found and not hasattr(session.config, "workerinput"):
        terminal.write_line("\n" + "\n".join(found), red=True)
        if unmarked(passed, FAR_TOO_SLOW):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def pipe() -> Any:
    return make_pipeline()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray of two processors on this machine; skips where Ray is not installed."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which profiles are kept: a new one, not the user's."""
    monkeypatch.setenv("RALU_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def attention_backend() -> Iterator[None]:
    """diffusers' `set_attention_backend` sets it for all models, those of other tests included."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)
