"""Speed against fidelity of the temporal policies, alone and on RALU's stages, and what a policy itself costs.

    python -m benchmarks.temporal_curves [--prompts 6] [--out benchmarks/results/temporal]

Every policy is swept over its main setting on three plans: 28 plain steps, "ralu-4x" (18 steps), "ralu-7x" (10 steps).
Fidelity is PSNR (mean over images, dB) and SSIM to the uncached run of the same plan, unguided, 128 pixels; speed is
the median ratio of wall-clock over rounds in which the uncached run and all variants take turns (batch 4, latents).
Writes curves.json, curves.md (with the skips in each stage) and curves.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tqdm import tqdm

from benchmarks.lab import Lab, compare
from ralu_cache import SeaCache, TaylorSeer, TeaCache, accelerate
from ralu_cache.engine.blocks import BlockStack
from ralu_cache.engine.root import RootHook
from ralu_cache.engine.run import Run
from ralu_cache.report.table import Table
from ralu_cache.temporal import Policy

PLANS: dict[str, str | None] = {"28 plain steps": None, "ralu-4x": "ralu-4x", "ralu-7x": "ralu-7x"}
STEPS = 28
BATCH = 4


@dataclass(frozen=True)
class Point:
    """One policy on one plan. `skips` are the steps reused of those made, per stage, averaged over images."""

    plan: str
    family: str
    policy: str
    psnr: float
    ssim: float
    flop_ratio: float
    wall_ratio: float
    skips: tuple[str, ...]


def policies() -> Iterator[tuple[str, str, Policy]]:
    """(family, label, policy)"""
    for threshold in (0.25, 0.4, 0.6, 0.8):
        yield "TeaCache, published", f"{threshold}", TeaCache(threshold=threshold, coefficients="flux", order=0)
    for threshold in (0.1, 0.2):
        yield "TeaCache, identity", f"{threshold}", TeaCache(threshold=threshold, coefficients="identity", order=0)
    for signal, thresholds in (("canvas", (0.2, 0.3, 0.5)), ("plane", (0.1, 0.2, 0.3))):
        for order in (0, 1):
            for threshold in thresholds:
                policy = SeaCache(threshold=threshold, order=order, signal=signal, transition="reset")
                yield f"SeaCache, {signal}, order {order}", f"{threshold}", policy
    for order in (0, 1):
        for interval in (2, 3):
            yield (
                f"TaylorSeer, order {order}",
                f"{interval}",
                TaylorSeer(interval=interval, order=order, first=1, ramp=False, transition="reset"),
            )
    for thresholds in ((0.7, 0.5, 0.4), (0.9, 0.7, 0.4), (1.5, 0.5, 0.5)):
        policy = SeaCache(threshold=thresholds, compute_stage_end=False, transition="reset")
        yield "SeaCache, canvas, order 1, by stage", str(thresholds), policy
    for intervals in ((5, 2, 2), (3, 3, 2)):
        policy = TaylorSeer(intervals, first=1, ramp=False, compute_stage_end=False, transition="reset")
        yield "TaylorSeer, order 1, by stage", str(intervals), policy
    for threshold in (0.3, 0.5):
        policy = SeaCache(threshold=threshold, order=1, transition="inherit")
        yield "SeaCache, canvas, order 1, inherit", f"{threshold}", policy
    for interval in (2, 3):
        inherit = TaylorSeer(interval=interval, first=1, ramp=False, transition="inherit")
        yield "TaylorSeer, order 1, inherit", f"{interval}", inherit


def wall_ratios(lab: Lab, spatial: str | None, chosen: list[Policy], rounds: int) -> list[float]:
    """Median speed-up of each policy over the uncached run of the same plan; interleaved, warm-up excluded."""
    times: list[list[float]] = [[] for _ in range(len(chosen) + 1)]
    for turn in range(rounds + 1):
        for slot, policy in zip(times, (None, *chosen), strict=True):
            with accelerate(lab.pipe, spatial=spatial, temporal=policy):
                start = time.perf_counter()
                lab.latents(STEPS, BATCH)
            if turn:
                slot.append(time.perf_counter() - start)
    return [statistics.median(a / b for a, b in zip(times[0], slot, strict=True)) for slot in times[1:]]


def measure(lab: Lab, rounds: int) -> list[Point]:
    points = []
    for plan, spatial in PLANS.items():
        reference, uncached = lab.accelerated(STEPS, "unguided", spatial, TaylorSeer(max_age=0))
        swept = list(policies())
        ratios = wall_ratios(lab, spatial, [policy for *_, policy in swept], rounds)
        for (family, label, policy), wall in tqdm(list(zip(swept, ratios, strict=True)), desc=plan):
            images, report = lab.accelerated(STEPS, "unguided", spatial, policy)
            psnr, structure = compare(images, reference)
            skips = tuple(f"{stage.reused / len(images):.1f}/{stage.steps}" for stage in report.stages)
            points.append(
                Point(plan, family, label, float(psnr.mean()), structure, uncached.flops / report.flops, wall, skips)
            )
    return points


@contextmanager
def clocked() -> Iterator[list[float]]:
    """A list of the seconds spent in hooks, policy, ledger and the staged step; empty where nothing of ours runs.

    Denoiser calls nested in a hook would count too; a run that computes every step has none.
    """
    spent: list[float] = []
    names = {RootHook: ("_before", "_after"), Run: ("advance",), BlockStack: ("_enter", "_leave")}

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - start)

        return call

    with ExitStack() as stack:
        for owner, name in ((owner, name) for owner, mine in names.items() for name in mine):
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        yield spent


def overhead(lab: Lab, rounds: int) -> dict[str, tuple[float, float]]:
    """Share of a run's time spent in code of ours when every step is computed: (without a policy, with it), medians.

    Timed from inside, because the difference between two whole runs drowns in this kind of machine's noise.
    """
    nothing: dict[str, Policy | None] = {
        "none": None,
        "teacache": TeaCache(threshold=0.0),
        "seacache": SeaCache(threshold=0.0),
        "taylorseer": TaylorSeer(max_age=0),
    }
    found = {}
    for plan, spatial in PLANS.items():
        shares: dict[str, list[float]] = {name: [] for name in nothing}
        for turn in range(rounds + 1):
            for name, policy in nothing.items():
                with clocked() as spent, accelerate(lab.pipe, spatial=spatial, temporal=policy):
                    start = time.perf_counter()
                    lab.latents(STEPS, BATCH)
                    whole = time.perf_counter() - start
                if turn:
                    shares[name].append(sum(spent) / whole)
        medians = {name: statistics.median(values) for name, values in shares.items()}
        found |= {f"{name} on {plan}": (medians["none"], share) for name, share in medians.items() if name != "none"}
    return found


def table(points: list[Point], costs: dict[str, tuple[float, float]]) -> str:
    titles = ("policy", "setting", "PSNR to uncached", "SSIM", "FLOPs", "wall-clock", "skips by stage")
    lines = []
    for plan in PLANS:
        rows = [
            (p.family, p.policy, f"{p.psnr:.1f} dB", f"{p.ssim:.3f}", f"{p.flop_ratio:.2f}x", f"{p.wall_ratio:.2f}x",
             ", ".join(p.skips))
            for p in points
            if p.plan == plan
        ]  # fmt: skip
        lines += [f"## {plan}", "", Table(titles, rows, left=(0, 1, 6)).markdown(), ""]
    lines += [
        "## Cost of our code when every step is computed: share of the run's time, timed from inside",
        "",
        Table(
            ("run", "spatial part alone", "with policy and ledger", "policy and ledger"),
            [(name, f"{a:.1%}", f"{b:.1%}", f"{b - a:.1%}") for name, (a, b) in costs.items()],
        ).markdown(),
    ]
    return "\n".join(lines) + "\n"


def plot(points: list[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PLANS), figsize=(6 * len(PLANS), 5), layout="constrained")
    for axis, plan in zip(axes, PLANS, strict=True):
        mine = [p for p in points if p.plan == plan]
        for family in dict.fromkeys(p.family for p in mine):
            line = sorted((p.wall_ratio, min(p.psnr, 60.0)) for p in mine if p.family == family)
            axis.plot(*zip(*line, strict=True), marker="o", markersize=4, label=family)
        axis.axhline(30, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=plan, xlabel="speed-up over the uncached plan (wall-clock)", ylabel="PSNR to it, dB (60: exact)")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4, help="interleaved timing rounds after one of warm-up")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/temporal"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lab = Lab(options.prompts)
    points = measure(lab, options.rounds)
    costs = overhead(lab, options.rounds)
    setting = {
        "prompts": lab.prompts, "seeds": list(range(len(lab.prompts))), "plain_steps": STEPS, "size": 128,
        "timing": {"batch": BATCH, "rounds": options.rounds, "threads": torch.get_num_threads()},
    }  # fmt: skip
    data = {**setting, "points": [asdict(p) for p in points], "overhead": costs}
    (options.out / "curves.json").write_text(json.dumps(data, indent=1) + "\n")
    head = (
        f"# Temporal policies on tiny-flux\n\n{len(lab.prompts)} prompts, 128x128 pixels, unguided. PSNR, SSIM, FLOPs "
        "and wall-clock are relative to the uncached run of the same plan.\n"
        "Skips: steps reused of those made, per stage. Made by `python -m benchmarks.temporal_curves`.\n\n"
    )
    (options.out / "curves.md").write_text(head + table(points, costs))
    plot(points, options.out / "curves.png")
    print(table(points, costs))


if __name__ == "__main__":
    main()
