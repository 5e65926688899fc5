"""Who is timed at real size: plain steps, every preset, every temporal policy alone and on stages, and the fastest.

A policy whose decisions depend on the content gets them from a recording (`benchmarks.forced`), because a model with
random weights has none; all others run as they are.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.forced import Forced
from benchmarks.gpu.models import Shape
from ralu_cache import SeaCache, TaylorSeer, TeaCache
from ralu_cache.sweep.methods import parse_method
from ralu_cache.temporal import Policy, resolve_temporal

PEERS = Path("benchmarks/results/peers/table.csv")
FULL_STEPS, PLAIN_STEPS = 50, 28
FULL, PLAIN = f"full, {FULL_STEPS} steps", f"{PLAIN_STEPS} steps"
FREE = "first=1,compute_stage_end=false"
UNTRACED = (
    "+taylorseer:5", "+adaptive:3", "+adaptive:3,ratio=0.2", "+toca:4", f"ralu-4x+taylorseer:5/2/2,{FREE}",
    "ralu-4x+adaptive:2", "ralu-4x+toca:4",
)  # fmt: skip
WITHIN = 2.0  # points of attribute accuracy that the fastest compositions may lose on the embedded model
TIMES = 12.0  # fewer FLOPs that they must have there


@dataclass(frozen=True)
class Contestant:
    """A way to call the pipeline: stock steps, spatial method, temporal policy, guidance.

    all_computed: reuse is impossible, so what it takes longer than as many plain steps is what caching costs.
    """

    label: str
    steps: int
    spatial: str | None = None
    temporal: Policy | None = None
    all_computed: bool = False
    guidance: str | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """For `accelerate`."""
        return {"spatial": self.spatial, "temporal": self.temporal, "guidance": self.guidance}

    @property
    def compiles(self) -> bool:
        """True if it goes with `compile_repeated_blocks`."""
        return self.temporal is None or self.temporal.caches == "stack"


def contestants(shape: Shape, traces: Mapping[str, Sequence[bool]], fastest: Sequence[str]) -> list[Contestant]:
    """The full run first: it is what the others are compared with."""
    found = [Contestant(FULL, FULL_STEPS), Contestant(PLAIN, PLAIN_STEPS)]
    found += [Contestant(name, FULL_STEPS, name) for name in shape.presets]
    for method in dict.fromkeys((*traces, *UNTRACED, *fastest)):
        parts = parse_method(method)
        policy = resolve_temporal(parts.temporal)
        if policy is not None and method in traces:
            policy = Forced(policy, tuple(traces[method]))
        found.append(Contestant(method, FULL_STEPS, parts.spatial, policy, guidance=parts.guidance))
    nothing = {"teacache": TeaCache(0.0), "seacache": SeaCache(0.0), "taylorseer": TaylorSeer(max_age=0)}
    return found + [
        Contestant(f"{PLAIN}, {name}, all computed", PLAIN_STEPS, None, policy, True)
        for name, policy in nothing.items()
    ]


def quick(everyone: Sequence[Contestant], fastest: Sequence[str]) -> list[Contestant]:
    """Plain steps, presets and the fastest, for parts that cannot take long."""
    return [c for c in everyone if c.temporal is None or c.label in fastest]


def fastest_faithful(path: Path = PEERS) -> list[str]:
    """Compositions that on the embedded model have `TIMES` fewer FLOPs and lose at most `WITHIN` points; best first."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    least = next(float(row["attributes"]) for row in rows if row["family"] == "full") - WITHIN
    found = [
        (float(row["flop_ratio"]), row["method"])
        for row in rows
        if row["family"] == "combined" and float(row["flop_ratio"]) >= TIMES and float(row["attributes"]) >= least
    ]
    return [method for _, method in sorted(found, reverse=True)]
