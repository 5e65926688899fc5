"""The benchmark at real size, with tiny shapes on the CPU: it runs, and what it reports is what ran."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.forced import METHODS, TRACES, Forced
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import agreement as numbers
from benchmarks.gpu import contestants as field
from benchmarks.gpu import joints as checks
from benchmarks.gpu import rows as row_shares
from benchmarks.gpu.goals import goals
from benchmarks.gpu.latency import measure, run
from benchmarks.gpu.models import (
    FLUX_DEV,
    SD35_LARGE,
    SHAPES,
    TINY_FLUX,
    TINY_SD3,
    build,
    call_arguments,
    make_transformer,
)
from benchmarks.gpu.page import page
from benchmarks.gpu.timing import Deadline
from ralu_cache import Forecast, TaylorSeer
from ralu_cache.sweep.methods import parse_method
from tests.sweep_bench import light_flux

CPU = torch.device("cpu")
TRACE = {"ralu-7x+taylorseer:3,first=1": [False, True, False, True, False, False, True, False, True, False]}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build(TINY_FLUX, CPU, torch.float32)


def everyone(shape: Any = TINY_FLUX) -> list[field.Contestant]:
    return field.contestants(shape, TRACE)


@pytest.mark.parametrize(("shape", "billions"), [(FLUX_DEV, 11.90), (SD35_LARGE, 8.06)], ids=["flux", "sd3"])
def test_architectures_have_the_published_numbers_of_parameters(shape: Any, billions: float) -> None:
    with torch.device("meta"):
        net = make_transformer(shape)
    assert sum(p.numel() for p in net.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("shape", [TINY_FLUX, TINY_SD3], ids=lambda shape: shape.family)
def test_the_tiny_shapes_draw(shape: Any) -> None:
    pipe = build(shape, CPU, torch.float32)
    assert all(tensor.isfinite().all() for tensor in pipe.transformer.state_dict().values())
    timed, report = run(pipe, field.Contestant("few", 5, "ralu-7x"), call_arguments(pipe, shape, 1, shape.size))
    assert report is not None and report.completed and len(timed.steps) == len(report.steps)


def test_forced_decisions_are_replayed(pipe: Any) -> None:
    (reuse,) = TRACE.values()
    contestant = field.Contestant("forced", 50, "ralu-7x", Forced(TaylorSeer(2), tuple(reuse)))
    timed, report = run(pipe, contestant, call_arguments(pipe, TINY_FLUX, 2, TINY_FLUX.size))
    assert report is not None and len(timed.steps) == len(report.steps) == 10
    assert [step.reused == 2 for step in report.steps] == reuse
    assert sum(timed.steps) <= timed.seconds


def test_rows_of_a_measurement(pipe: Any) -> None:
    call = call_arguments(pipe, TINY_FLUX, 1, TINY_FLUX.size)
    chosen = [c for c in everyone() if c.label in (field.FULL, field.PLAIN, *TRACE)]
    found = measure(pipe, chosen, call, 1, "test", Deadline(None))
    full, plain, forced = found.rows
    assert found.rounds == 1 and full["speedup"] == 1.0 and plain["flop_ratio"] == pytest.approx(50 / 8)
    assert forced["flop_ratio"] > 9 and {"16 computed", "16 reused, transition", "64 reused"} <= set(forced["steps"])
    assert forced["token_counts"] == [16, 22, 64] and forced["transition_seconds"] is not None
    assert not measure(pipe, chosen[:1], call, 0, "test", Deadline(None)).rows


def test_no_round_begins_that_would_end_too_late(pipe: Any) -> None:
    chosen = [field.Contestant("few", 3)]
    call = call_arguments(pipe, TINY_FLUX, 1, TINY_FLUX.size)
    assert measure(pipe, chosen, call, 5, "test", Deadline(0.0)).rounds == 1, "one is measured in any case"


def test_every_kind_of_step_is_what_it_is_called(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_shares, "SHARES", (0.2, 0.5, 1.0))
    found = row_shares.rows(pipe, call_arguments(pipe, TINY_FLUX, 1, TINY_FLUX.size), 1, Deadline(None))
    shares = {(row["stage"], row["step"]): row["flop_share"] for row in found["rows"]}
    for stage in ("fine", "mixed"):
        order = [shares[stage, f"{share} of the tokens"] for share in ("20%", "50%", "100%")]
        assert order == sorted(order) and order[-1] == shares[stage, "full"] == 1.0
        assert shares[stage, "reused"] < order[0]
    assert found["skipped"] == {"xformers": "needs a GPU"}


def test_agreement_is_judged_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "backend_for", lambda device: "eager")
    found = numbers.agreement(TINY_SD3, CPU)
    stock, single, *others = found["rows"]
    assert 1e-4 < stock["error"] < 1e-1 and stock["bound"] == pytest.approx(numbers.FACTOR * stock["error"])
    assert single["error"] < 1e-5
    assert all(row["within"] for row in others) and all(found["same_bits"].values())
    assert set(found["skipped"]) == {"bfloat16, xformers"} and len(others) == 3


def test_every_method_that_looks_at_the_content_has_its_recording() -> None:
    traces = json.loads(TRACES.read_text())
    assert set(traces) == set(METHODS)
    found = field.contestants(FLUX_DEV, traces)
    assert {c.label for c in found if isinstance(c.temporal, Forced)} == set(METHODS)
    named = (*field.FORECASTS, *field.COMPOSED, *field.CACHED)
    assert not any((parse_method(name).temporal or "").startswith(("teacache", "seacache")) for name in named)


def test_who_is_not_ours_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    call = call_arguments(pipe, TINY_FLUX, 1, TINY_FLUX.size)
    scheduler = pipe.scheduler
    steps, cache = (c for c in everyone() if c.label in ("stock UniPC, 4 steps", field.TAYLORSEER))
    timed, report = run(pipe, steps, call)
    assert report is None and len(timed.steps) == 4
    timed, report = run(pipe, field.Contestant(cache.label, 7, stock=cache.stock), call)
    assert report is None and len(timed.steps) == 7
    assert pipe.scheduler is scheduler and not pipe.transformer.is_cache_enabled


def test_forecast_steps_are_timed_and_told_apart(pipe: Any) -> None:
    call = call_arguments(pipe, TINY_FLUX, 1, TINY_FLUX.size)
    chosen = [field.Contestant(field.FULL, 12), field.Contestant("+forecast:4", 12, None, Forecast(4))]
    _, forecast = measure(pipe, chosen, call, 1, "test", Deadline(None)).rows
    assert set(forecast["steps"]) == {"64 computed", "64 forecast"} and forecast["held_bytes"] > 0
    assert forecast["steps"]["64 forecast"] < forecast["steps"]["64 computed"]


def test_what_must_hold_at_the_joints_holds_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "KINDS", {kind: checks.KINDS[kind] for kind in ("forecast", "layers")})
    monkeypatch.setattr(checks, "STEPS", 4)
    light = light_flux()
    monkeypatch.setattr(checks, "loaded", lambda device, dtype=torch.float32: deepcopy(light).to(dtype))
    found = checks.joints(CPU)
    assert len(found["rows"]) == 6 and all(row["good"] for row in found["rows"]) and "offload" in found["skipped"]


def measured(method: str, speedup: float, **more: Any) -> dict[str, Any]:
    blank = {
        "all_computed": False,
        "transition_seconds": None,
        "steps": {},
        "peak_bytes": 100,
        "cached_bytes": 0,
        "held_bytes": 0,
    }
    times = {"seconds": 10 / speedup, "outside_seconds": 0.1, "speedup": speedup, "flop_ratio": speedup}
    return {"method": method, **blank, **times} | more


def waiting(most: int, decides: bool) -> dict[str, Any]:
    return {"most": most, "decides": decides, "by_step": [3, most]}


def test_goals_say_reached_missed_or_not_measured() -> None:
    assert {goal.state for goal in goals({})} == {"not measured"}
    composed = {"held_bytes": 3e7, "steps": {"4096 forecast": 0.4}}
    eager = [
        measured(field.FULL, 1.0), measured(field.PLAIN, 2.0), measured("ralu-4x", 4.3, transition_seconds=0.05),
        measured("ralu-7x", 6.9, flop_ratio=7.5), measured("ralu-8x+forecast:2", 12.5, **composed),
        measured("+teacache:0.4", 2.0, peak_bytes=106),
        measured("8 steps, teacache, all computed", 2.0, seconds=5.05, all_computed=True),
    ]  # fmt: skip
    results = {
        "eager": {"rows": eager},
        "compiled": {
            "rows": [], "graphs": 7, "graphs_of_stock": [3, 2], "graphs_of_later_calls": 1, "token_counts": [1, 2, 3],
        },
        "waits": {"waits": {"a": waiting(1, True), "b": waiting(0, False)}},
        "joints": {"rows": [{"check": "a", "kind": "b", "distance": 1.0, "good": False}], "skipped": {}},
        "agreement": {
            "rows": [{"candidate": "x", "within": False, "error": 1.0, "bound": 0.5}], "same_bits": {"y": True},
        },
    }  # fmt: skip
    written = page({"shape": "x", "device": "y", "note": "", **results, "eager": {"rows": eager, "rounds": 1}})
    assert "| `ralu-4x` | 2.326 | 0.100 | 4.30x | 4.30x | 100% | 0.00 GiB | 0 MiB | 0.0 MiB |" in written
    assert "- `ralu-4x`: ; transitions 50.0" in written
    found = {goal.name: goal.state for goal in goals(results)}
    assert found["ralu-4x, eager"] == found["ralu-4x, eager, of its FLOPs"] == "reached"
    assert found["ralu-7x, eager"] == found["ralu-7x, eager, of its FLOPs"] == "missed"
    assert found["a step that is forecast"] == "reached" and found["predictions held, without stages"] == "not measured"
    assert found["at the joints"] == "missed"
    assert found["stages and reuse, eager"] == "reached" and found["ralu-4x, compiled"] == "not measured"
    assert found["hooks, ledger and transitions"] == "reached", "1 % and 0.5 %"
    assert found["host waits in a step"] == "reached" and found["graphs"] == "reached"
    assert found["graphs of a second call"] == found["numerical agreement"] == "missed"
    assert found["peak memory of teacache, seacache, taylorseer"] == "missed"


def test_the_command_writes_each_part_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of an earlier call stay; one that comes too late says so."""
    monkeypatch.setattr(command, "PARTS", {**command.PARTS, "rows": lambda bench: {"rows": [], "skipped": {}}})
    for parts, seconds in ((["rows", "waits"], "60"), (["busy"], "0")):
        arguments = ["gpu", "--shape", "tiny", "--out", str(tmp_path), "--seconds", seconds, "--parts", *parts]
        monkeypatch.setattr("sys.argv", arguments)
        command.main()
    data = json.loads((tmp_path / "tiny.json").read_text())
    assert data["rows"] == {"rows": [], "skipped": {}} and data["waits"] == {"skipped": "it takes a GPU"}
    assert "no time was left of 0 s" in data["busy"]["skipped"]
    assert "| ralu-4x, eager | at least 4.2x faster than the full run |  | not measured |" in page(data)
    assert (tmp_path / "tiny.md").read_text() == page(data) + "\n"


def test_all_shapes_have_a_name() -> None:
    assert set(SHAPES) == {"flux-dev", "sd35-large", "tiny", "tiny-sd3-shape"}
