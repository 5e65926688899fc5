"""What a step costs of which some tokens are computed: shares of a fine and of a mixed step, by attention backend.

The mechanism is that of `benchmarks.row_sparse_step`: every second step of a stage is the one that is measured, all
caches are filled. Attention of these rows to all tokens goes through SDPA, or through xformers where it is installed.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.latency import kind
from benchmarks.gpu.timing import Deadline, time_call
from benchmarks.row_sparse_step import STEPS, measured, policies
from ralu_cache import RALU, Report, accelerate
from ralu_cache.temporal import Policy

SHARES = (0.1, 0.2, 0.3, 0.5, 1.0)
STAGES: dict[str, tuple[RALU | None, int]] = {
    "fine": (None, 0), "mixed": (RALU(steps=(2, STEPS + 1, 1)), 1)
}  # fmt: skip
"""The plan, and which of its stages is looked at; of the mixed one the last step is not, for a transition follows."""
EXPECTED = {"full": "computed", "100% of the tokens": "computed", "reused": "reused"}


def rows(pipe: Any, call: dict[str, Any], rounds: int, deadline: Deadline) -> dict[str, Any]:
    """By backend and stage one row a kind of step: median milliseconds, share of a full step, share of its FLOPs."""
    found: dict[str, Any] = {"rows": [], "skipped": {}}
    for backend in ("native", "xformers"):
        if (reason := unavailable(pipe, backend)) is not None:
            found["skipped"][backend] = reason
            continue
        try:
            with attention_backend(pipe, backend):
                for stage in STAGES:
                    found["rows"] += _stage(pipe, call, rounds, deadline, backend, stage)
        except Exception as failure:
            if backend == "native":
                raise
            found["skipped"][backend] = f"{type(failure).__name__}: {failure}"  # a broken back end is no end
    return found


def _stage(
    pipe: Any, call: dict[str, Any], rounds: int, deadline: Deadline, backend: str, stage: str
) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in policies(SHARES)}
    flops: dict[str, float] = {}
    for turn in range(rounds + 1):
        if turn > 1 and deadline.passes_within(sum(sum(slot[-1:]) for slot in times.values()) * STEPS):
            break
        for name, policy in policies(SHARES).items():
            seconds, flops[name], tokens = _measured_steps(pipe, call, name, policy, stage)
            if turn:
                times[name] += seconds
    full = statistics.median(times["full"])
    return [
        {
            "backend": backend, "stage": stage, "tokens": tokens, "step": name,
            "milliseconds": 1000 * statistics.median(slot), "share": statistics.median(slot) / full,
            "flop_share": flops[name] / flops["full"], "samples": len(slot),
        }
        for name, slot in times.items()
    ]  # fmt: skip


def _measured_steps(
    pipe: Any, call: dict[str, Any], name: str, policy: Policy, stage: str
) -> tuple[list[float], float, int]:
    """Seconds of the measured steps, FLOPs of one, image tokens. Raises RuntimeError if they did something else."""
    plan, number = STAGES[stage]
    with accelerate(pipe, spatial=plan, temporal=policy) as handle:
        steps = STEPS if plan is None else sum(plan.steps or ())
        timed = time_call(pipe, {**call, "num_inference_steps": steps, "output_type": "latent"})
        report: Report = handle.report  # type: ignore[assignment]
    places = [place for place, step in enumerate(report.steps) if step.stage == number][:STEPS]
    chosen = measured(places)
    expected = EXPECTED.get(name, "partial")
    for place in chosen:
        if not kind(report, place).endswith(expected):
            raise RuntimeError(f"step {place} of {name!r} should be {expected}, was {kind(report, place)}")
    step = report.steps[chosen[0]]
    return [timed.steps[place] for place in chosen], step.flops, step.tokens


def unavailable(pipe: Any, backend: str) -> str | None:
    """Why attention cannot go through a backend here, or None."""
    if backend == "native":
        return None
    if pipe.transformer.device.type != "cuda":
        return "needs a GPU"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    if "Flux" not in type(pipe.transformer).__name__:
        return "the stock attention of this model goes through SDPA alone"
    return None


@contextmanager
def attention_backend(pipe: Any, backend: str) -> Iterator[None]:
    """Stock attention through one of diffusers' backends; "native" is SDPA, which is the default."""
    if backend == "native":
        yield
        return
    pipe.transformer.set_attention_backend(backend)
    try:
        yield
    finally:
        pipe.transformer.reset_attention_backend()
