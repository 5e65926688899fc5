"""The benchmark at real size, with a tiny shape on the CPU: it runs, and what it reports is what ran."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.forced import METHODS, TRACES, Forced
from benchmarks.gpu_models import TINY, build, call_arguments
from ralu_cache import TaylorSeer

TRACE = {"ralu-7x+taylorseer:3,first=1": [False, True, False, True, False, False, True, False, True, False]}


@pytest.fixture(scope="module")
def pipe() -> object:
    return build(TINY, torch.device("cpu"), torch.float32)


def test_forced_decisions_are_replayed(pipe: object) -> None:
    (reuse,) = TRACE.values()
    contestant = gpu.Contestant("forced", 50, "ralu-7x", Forced(TaylorSeer(2), tuple(reuse)))
    timed, report = gpu.run(pipe, contestant, call_arguments(pipe, TINY, 2, TINY.size))
    assert report is not None and len(timed.steps) == len(report.steps) == 10
    assert [step.reused == 2 for step in report.steps] == reuse
    assert sum(timed.steps) <= timed.seconds


def test_rows_and_table(pipe: object) -> None:
    call = call_arguments(pipe, TINY, 1, TINY.size)
    chosen = [c for c in gpu.contestants(TRACE) if c.label in ("full, 50 steps", "28 steps", *TRACE)]
    rows = gpu.measure(pipe, chosen, call, 1, "test")
    full, plain, forced = rows
    assert full["speedup"] == 1.0 and plain["flop_ratio"] == pytest.approx(50 / 28)
    assert forced["flop_ratio"] > 9 and {"16 computed", "16 reused", "64 reused"} <= set(forced["steps"])
    data = {"shape": "tiny", "device": "CPU", "note": "", "batch": {"rows": rows}}
    assert "| `28 steps` |" in gpu.table(json.loads(json.dumps(data)))


def test_every_method_has_its_recording() -> None:
    assert set(json.loads(TRACES.read_text())) == set(METHODS)
