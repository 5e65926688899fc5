"""A copy of the project, and its tests run there, each run in a process of its own that has the heavy imports done."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM = (
    "torch", "scipy.optimize", "peft", "diffusers.pipelines.flux", "diffusers.pipelines.stable_diffusion_3",
    "diffusers.pipelines.qwenimage", "diffusers.pipelines.wan", "diffusers.pipelines.controlnet_sd3",
    "diffusers.callbacks", "diffusers.hooks", "hypothesis.stateful", "_pytest.assertion.rewrite",
)  # fmt: skip
OURS = ("ralu_cache", "benchmarks", "tests")
LIMIT = 120.0  # seconds for the tests of one mutant


class NoResult(RuntimeError):
    """The tests could not be run to their end: a module can't be imported, or the process hangs or dies."""


@dataclass(frozen=True)
class Outcome:
    """caught: the id of the first test that failed, None if all passed. seconds: of the run; each: of each test."""

    caught: str | None
    seconds: float
    each: Mapping[str, float] = field(default_factory=dict)


def copy_project(root: Path, tree: Path) -> None:
    """Copy the tracked files. A link lets `ralu_cache.adapters` be found in the copy, before the installed one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # otherwise it was deleted since
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, tree / name)
    (tree / "ralu_cache" / "adapters").symlink_to(Path("..") / "adapters")


def warm_up() -> None:
    """Import what every test needs and no mutant changes; the processes of the runs begin with it."""
    for name in WARM:
        importlib.import_module(name)


def run_tests(tree: Path, tests: Sequence[str], compiled: bool = False, limit: float = LIMIT) -> Outcome:
    """Run tests (what pytest takes) in the copy until the first fails. compiled: keep the modules' bytecode.

    Raises NoResult if they could not be run: nothing is found under an id, a module cannot be imported, they take more
    than `limit` seconds; RuntimeError if something of ours came from elsewhere than the copy.
    """
    named = tests[0] if len(tests) == 1 else f"{len(tests)} tests"
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=_run, args=(tree, tuple(tests), compiled, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            raise NoResult(f"{named}: no result within {limit:g} seconds")
        code, failed, each, strays, shown = receiver.recv()
    except EOFError as error:
        raise NoResult(f"{named}: the process ended without a result") from error
    finally:
        process.kill()
        process.join()
    seconds = time.perf_counter() - start
    if strays:
        raise RuntimeError(f"not from the copy at {tree}: {', '.join(strays)}")
    if code not in (0, 1) or (code == 1) != bool(failed):
        raise NoResult(f"{named}: pytest could not run them (exit code {code})\n{shown}")
    return Outcome(failed[0] if failed else None, seconds, each)


class _Watch:
    """A plugin of pytest: notes what failed and each test's seconds.

    Failures of hypothesis are neither made smaller nor remembered.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", deadline=None, database=None, phases=phases)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def _run(tree: Path, tests: Sequence[str], compiled: bool, sender: Any) -> None:
    import pytest

    os.chdir(tree)
    sys.path[0] = str(tree)
    sys.dont_write_bytecode = not compiled  # of a fault it could be taken for that of the next one in the same file
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    watch, log = _Watch(), tree / "log.txt"
    with log.open("w") as shown, redirect_stdout(shown), redirect_stderr(shown):
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests], plugins=[watch])
    sender.send((int(code), watch.failed, watch.seconds, _strays(tree), log.read_text()[-1500:]))


def _strays(tree: Path) -> list[str]:
    """The modules of ours that were not imported from the copy."""
    loaded = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    ours = {name: Path(file) for name, file in loaded.items() if file and name.partition(".")[0] in OURS}
    return [f"{name} ({file})" for name, file in ours.items() if not file.resolve().is_relative_to(tree.resolve())]
