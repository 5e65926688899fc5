"""Latency at real size: stock FLUX.1-dev architecture with random bf16 weights, every method, one command.

    python -m benchmarks.gpu [--shape flux-dev] [--parts eager batch large compiled] [--out benchmarks/results/gpu]
    python -m benchmarks.gpu --shape tiny --rounds 1          # the same on a CPU, in seconds, to see that it works

Times whole pipeline calls (embeddings given, autoencoder included) in rounds in which all methods take turns, and the
steps in them, by stage and by computed or reused; CUDA events, medians, one round of warm-up left out. Temporal
decisions are replayed from the embedded model (`benchmarks.forced`). Also: peak memory, how often the host waits for
the device, the share of a run in which kernels are at work, and what hooks, policy and ledger cost when every step is
computed. Parts: eager (batch 1), batch (4), large (twice as many pixels a side), compiled
(`compile_repeated_blocks`). Each part is written as it ends, so a run that is cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.forced import TRACES, Forced
from benchmarks.gpu_models import SHAPES, Shape, build, call_arguments
from benchmarks.gpu_timing import Timed, busy_share, count_synchronisations, time_call
from ralu_cache import Report, SeaCache, TaylorSeer, TeaCache, accelerate
from ralu_cache.methods import parse_method
from ralu_cache.temporal import Policy, resolve_temporal

FULL_STEPS = 50


@dataclass(frozen=True)
class Contestant:
    """A way to call the pipeline: stock steps, spatial method, temporal policy."""

    label: str
    steps: int
    spatial: str | None = None
    temporal: Policy | None = None


def contestants(traces: dict[str, list[bool]], quick: bool = False) -> list[Contestant]:
    """The full run first: it is what the others are compared with."""
    found = [Contestant("full, 50 steps", FULL_STEPS), Contestant("28 steps", 28)]
    found += [Contestant(name, FULL_STEPS, name) for name in ("ralu-4x", "ralu-5x", "ralu-7x")]
    for method, reuse in traces.items():
        parts = parse_method(method)
        policy = resolve_temporal(parts.temporal)
        assert policy is not None
        found.append(Contestant(method, FULL_STEPS, parts.spatial, Forced(policy, tuple(reuse))))
    if quick:
        return [c for c in found if c.spatial in ("ralu-4x", "ralu-7x") or (c.spatial is None and c.temporal is None)]
    nothing = {"teacache": TeaCache(0.0), "seacache": SeaCache(0.0), "taylorseer": TaylorSeer(max_age=0)}
    return found + [Contestant(f"28 steps, {name}, all computed", 28, None, policy) for name, policy in nothing.items()]


def run(pipe: Any, contestant: Contestant, call: dict[str, Any]) -> tuple[Timed, Report | None]:
    with accelerate(pipe, spatial=contestant.spatial, temporal=contestant.temporal) as handle:
        timed = time_call(pipe, {**call, "num_inference_steps": contestant.steps})
        return timed, handle.report


def measure(pipe: Any, chosen: list[Contestant], call: dict[str, Any], rounds: int, note: str) -> list[dict[str, Any]]:
    """One row a contestant: medians over the rounds, and steps by tokens and by computed or reused."""
    timed: list[list[Timed]] = [[] for _ in chosen]
    reports: list[Report | None] = [None] * len(chosen)
    for turn in tqdm(range(rounds + 1), desc=note):
        for place, contestant in enumerate(chosen):
            one, reports[place] = run(pipe, contestant, call)
            if turn:
                timed[place].append(one)
    rows = []
    for contestant, calls, report in zip(chosen, timed, reports, strict=True):
        ratios = [full.seconds / one.seconds for full, one in zip(timed[0], calls, strict=True)]
        rows.append(
            {
                "method": contestant.label,
                "seconds": statistics.median(one.seconds for one in calls),
                "speedup": statistics.median(ratios),
                "speedup_range": (min(ratios), max(ratios)),
                "flop_ratio": _flop_ratio(report, contestant),
                "peak_bytes": max(one.peak_bytes for one in calls),
                "cached_bytes": report.peak_cached_bytes if report is not None else 0,
                "steps": _steps(calls, report),
            }
        )
    return rows


def _flop_ratio(report: Report | None, contestant: Contestant) -> float:
    """Of the transformer alone, over the full run's."""
    plain = FULL_STEPS / contestant.steps
    return plain if report is None else report.flop_ratio * plain


def _steps(calls: list[Timed], report: Report | None) -> dict[str, float]:
    """Median milliseconds of a step, by its tokens and whether it was reused; stock runs have one kind."""
    kinds: dict[str, list[float]] = {}
    for one in calls:
        for place, seconds in enumerate(one.steps):
            record = None if report is None else report.steps[place]
            kind = "stock" if record is None else f"{record.tokens} {'reused' if record.reused else 'computed'}"
            kinds.setdefault(kind, []).append(seconds)
    return {kind: 1000 * statistics.median(values) for kind, values in kinds.items()}


def waits(pipe: Any, chosen: list[Contestant], call: dict[str, Any]) -> dict[str, float | None]:
    """Times per step that the host waits for the device, the autoencoder left out."""
    found = {}
    for contestant in chosen:
        count = count_synchronisations(lambda c=contestant: run(pipe, c, {**call, "output_type": "latent"}))
        _, report = run(pipe, contestant, {**call, "output_type": "latent"})
        steps = contestant.steps if report is None else len(report.steps)
        found[contestant.label] = None if count is None else count / steps
    return found


def parts(pipe: Any, shape: Shape, traces: dict[str, list[bool]], rounds: int) -> dict[str, Callable[[], Any]]:
    """What can be measured, by name."""

    def arguments(batch: int, size: int) -> dict[str, Any]:
        return call_arguments(pipe, shape, batch, size)

    def eager() -> dict[str, Any]:
        call, chosen = arguments(1, shape.size), contestants(traces)
        rows = measure(pipe, chosen, call, rounds, "eager")
        some = [c for c in chosen if c.label in ("28 steps", "ralu-4x", "ralu-4x+seacache:0.5", "+teacache:0.4")]
        profiled = {c.label: busy_share(lambda c=c: run(pipe, c, call)) for c in some}
        return {"rows": rows, "host_waits_per_step": waits(pipe, some, call), "busy": profiled}

    def batch() -> dict[str, Any]:
        return {"rows": measure(pipe, contestants(traces, True), arguments(4, shape.size), 1, "batch 4")}

    def large() -> dict[str, Any]:
        return {"rows": measure(pipe, contestants(traces, True), arguments(1, shape.large), 1, "large")}

    def compiled() -> dict[str, Any]:
        from torch._dynamo.utils import counters

        pipe.transformer.compile_repeated_blocks(fullgraph=True)
        call, chosen = arguments(1, shape.size), contestants(traces, True)
        counters.clear()
        first = measure(pipe, chosen, call, 1, "compiled, first calls")
        graphs = counters["stats"]["unique_graphs"]
        rows = measure(pipe, chosen, call, rounds, "compiled")
        again = counters["stats"]["unique_graphs"] - graphs
        return {"rows": rows, "first": first, "graphs": graphs, "graphs_of_later_calls": again}

    return {"eager": eager, "batch": batch, "large": large, "compiled": compiled}


def table(results: dict[str, Any]) -> str:
    lines = [f"# {results['shape']} on {results['device']}", "", results["note"], ""]
    for name in ("eager", "batch", "large", "compiled"):
        if name not in results:
            continue
        lines += [
            f"## {name}",
            "",
            "| method | seconds | faster | fewer FLOPs | of what FLOPs allow | peak memory | cached |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| `{row['method']}` | {row['seconds']:.3f} | {row['speedup']:.2f}x | {row['flop_ratio']:.2f}x "
            f"| {row['speedup'] / row['flop_ratio']:.0%} | {row['peak_bytes'] / 2**30:.2f} GiB "
            f"| {row['cached_bytes'] / 2**20:.0f} MiB |"
            for row in results[name]["rows"]
        ]
        lines += ["", "Milliseconds a step, by image tokens:", ""]
        lines += [
            f"- `{row['method']}`: " + ", ".join(f"{kind} {ms:.1f}" for kind, ms in row["steps"].items())
            for row in results[name]["rows"]
        ]
        lines.append("")
        if name == "compiled":
            new, later = results[name]["graphs"], results[name]["graphs_of_later_calls"]
            lines += [f"{new} graphs compiled in the first calls, {later} in later ones.", ""]
        if name == "eager":
            lines += [
                "Times a step that the host waits for the device: " + _listing(results[name]["host_waits_per_step"])
            ]
            busy = {label: None if found is None else found[0] for label, found in results[name]["busy"].items()}
            lines += ["", "Share of the time in which kernels are at work: " + _listing(busy), ""]
    return "\n".join(lines)


def _listing(values: dict[str, float | None]) -> str:
    return ", ".join(f"`{k}` {'not measured' if v is None else f'{v:.2f}'}" for k, v in values.items()) + "."


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["eager"]["rows"]
    figure, axis = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.5), layout="constrained")
    axis.barh(
        [row["method"] for row in rows], [row["flop_ratio"] for row in rows], color="#d9dee5", label="fewer FLOPs"
    )
    axis.barh([row["method"] for row in rows], [row["speedup"] for row in rows], height=0.4, label="faster")
    axis.invert_yaxis()
    axis.set(xlabel="times", title=f"{results['shape']}, eager, batch 1, {results['device']}")
    axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="flux-dev")
    parser.add_argument("--parts", nargs="+", choices=("eager", "batch", "large", "compiled"), default=["eager"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SHAPES[options.shape]
    pipe = build(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    measures = parts(pipe, shape, json.loads(TRACES.read_text()), options.rounds)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    note = (
        f"Random weights, {shape.size} pixels a side ({shape.large} in part large), torch {torch.__version__}; medians "
        f"of {options.rounds} interleaved rounds (one in parts batch and large)."
    )
    results: dict[str, Any] = {"shape": shape.name, "device": name, "note": note}
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        results[part] = measures[part]()
        (options.out / f"{options.shape}.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.out / f"{options.shape}.md").write_text(table(results) + "\n")
    if "eager" in results:
        plot(results, options.out / f"{options.shape}.png")
    print(table(results))


if __name__ == "__main__":
    main()
