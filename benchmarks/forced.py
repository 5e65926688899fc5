"""Temporal policies whose decisions are replayed from a recording, for models with random weights.

    python -m benchmarks.forced [--prompts 8] [--out benchmarks/results/gpu/traces.json]

What a policy reuses depends on the content, and a model with random weights has none; so the decisions that each
method takes on the embedded model, unguided, are recorded (a step counts as reused if most pictures reuse it) and
replayed. All else runs as the policy does it: its signal, its distances, its forecast.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lab import Lab
from ralu_cache.history.residuals import History
from ralu_cache.report.report import Report
from ralu_cache.sweep.methods import parse_method
from ralu_cache.temporal import Decision, Policy, PolicyState, Situation
from ralu_cache.temporal.policy import Refresh, TokenView

TRACES = Path("benchmarks/results/gpu/traces.json")
METHODS = (  # of policies that look at the content; the others need no recording
    "+teacache:0.4", "+seacache:0.3", "+seacache:0.6", "ralu-4x+teacache:0.4", "ralu-4x+seacache:0.5",
    "ralu-7x+seacache:0.5",
)  # fmt: skip
Script = Sequence[bool] | Tensor  # (steps,) or (steps, B)


class Forced:
    """`policy`, but what is reused is dictated: a policy for as many branches as it is told of.

    scripts: for each branch of each run, in the order in which they begin, whether step i reuses: one bool for all
    samples, or (B,) bool. A single script serves every branch.
    """

    max_age = None

    def __init__(self, policy: Policy, *scripts: Script) -> None:
        self.policy = policy
        self.signal, self.caches, self.measures = policy.signal, policy.caches, policy.measures
        self.transition, self.order = policy.transition, policy.order
        self._scripts = cycle(scripts) if len(scripts) == 1 else iter(scripts)

    def start(self, batch: int, device: torch.device | str) -> PolicyState:
        """Raises StopIteration for more branches than there are scripts."""
        return _Replay(self.policy.start(batch, device), next(self._scripts))


@dataclass
class _Replay:
    state: PolicyState
    reuse: Script

    def decide(
        self, situation: Situation, signal: Tensor | None, previous: Tensor | None, readable: Tensor
    ) -> Decision:
        """The policy's own distances, the recording's decision; raises IndexError for a run longer than it."""
        decision = self.state.decide(situation, signal, previous, readable)
        wanted = self.reuse[situation.step]
        if isinstance(wanted, Tensor):
            return replace(decision, reuse=wanted.to(readable.device).expand_as(readable) & readable)
        return replace(decision, reuse=readable if wanted else torch.zeros_like(readable))

    def select(self, situation: Situation, view: TokenView) -> Tensor | None:
        return self.state.select(situation, view)

    def refresh(self, situation: Situation, view: TokenView, text: int, singles: Sequence[bool]) -> Refresh:
        return self.state.refresh(situation, view, text, singles)

    def forecast(self, history: History, sigma: float, rows: Tensor | None = None) -> Tensor:
        return self.state.forecast(history, sigma, rows)


def majority(report: Report) -> tuple[bool, ...]:
    """Per step, whether most samples of its calls reused."""
    return tuple(2 * step.reused > step.calls * report.batch for step in report.steps)


def record(lab: Lab, methods: Sequence[str], steps: int) -> dict[str, list[bool]]:
    found = {}
    for method in methods:
        parts = parse_method(method)
        _, report = lab.accelerated(steps, "unguided", parts.spatial, parts.temporal, parts.guidance)
        found[method] = list(majority(report))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--out", type=Path, default=TRACES)
    options = parser.parse_args()
    traces = record(Lab(options.prompts), METHODS, steps=50)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(traces) + "\n")
    for method, reuse in traces.items():
        print(f"{method:60} {''.join('r' if r else 'C' for r in reuse)}")


if __name__ == "__main__":
    main()
