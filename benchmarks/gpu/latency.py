"""Whole pipeline calls: seconds, steps by stage and by computed, partial or reused, memory; in rounds, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from benchmarks.gpu.contestants import FULL_STEPS, Contestant
from benchmarks.gpu.timing import Deadline, Timed, busy_share, time_call, waits_by_step
from ralu_cache import Report


def run(pipe: Any, contestant: Contestant, call: dict[str, Any]) -> tuple[Timed, Report | None]:
    with contestant.on(pipe) as handle:
        timed = time_call(pipe, {**call, "num_inference_steps": contestant.steps})
        return timed, None if handle is None else handle.report


@dataclass(frozen=True)
class Measured:
    """rows: one a contestant; rounds: so many were measured, all of them or those for which there was time.

    first_seconds: of the round of warm-up, by contestant. Without a measured round there are no rows.
    """

    rows: list[dict[str, Any]]
    rounds: int
    first_seconds: dict[str, float]


def measure(
    pipe: Any, chosen: Sequence[Contestant], call: dict[str, Any], rounds: int, note: str, deadline: Deadline
) -> Measured:
    """Medians over the rounds, of which the first is warm-up; no further round begins that would end too late."""
    timed: list[list[Timed]] = [[] for _ in chosen]
    reports: list[Report | None] = [None] * len(chosen)
    done, first = 0, {}
    for turn in tqdm(range(rounds + 1), desc=note):
        if turn > 1 and deadline.passes_within(sum(calls[-1].seconds for calls in timed)):
            break
        for place, contestant in enumerate(chosen):
            one, reports[place] = run(pipe, contestant, call)
            if turn:
                timed[place].append(one)
            else:
                first[contestant.label] = one.seconds
        done = turn
    rows = []
    if not done:
        return Measured(rows, done, first)
    for contestant, calls, report in zip(chosen, timed, reports, strict=True):
        ratios = [full.seconds / one.seconds for full, one in zip(timed[0], calls, strict=True)]
        rows.append(
            {
                "method": contestant.label,
                "all_computed": contestant.all_computed,
                "seconds": statistics.median(one.seconds for one in calls),
                "speedup": statistics.median(ratios),
                "speedup_range": (min(ratios), max(ratios)),
                "flop_ratio": flop_ratio(report, contestant),
                "outside_seconds": statistics.median(one.seconds - sum(one.steps) for one in calls),
                "peak_bytes": max(one.peak_bytes for one in calls),
                "cached_bytes": report.peak_cached_bytes if report is not None else 0,
                "held_bytes": max((step.history_bytes for step in report.steps), default=0) if report else 0,
                "steps": step_kinds(calls, report),
                "transition_seconds": transition_seconds(calls, report),
                "token_counts": sorted({step.tokens for step in report.steps}) if report is not None else [],
            }
        )
    return Measured(rows, done, first)


def flop_ratio(report: Report | None, contestant: Contestant) -> float | None:
    """Of the transformer alone, over the full run's; None where a cache of diffusers' does not say."""
    if contestant.stock == "taylorseer":
        return None
    plain = FULL_STEPS / contestant.steps
    return plain if report is None else report.flop_ratio * plain


def kind(report: Report | None, place: int) -> str:
    """A step's tokens and what was done for them; stock runs have one kind."""
    if report is None:
        return "stock"
    step = report.steps[place]
    if not step.calls:
        return f"{step.tokens} forecast"
    done = "partial" if step.partial else "reused" if step.reused else "computed"
    return f"{step.tokens} {done}"


def step_kinds(calls: Sequence[Timed], report: Report | None) -> dict[str, float]:
    """Median milliseconds of the steps of each kind; those before a transition are kinds of their own, they do more."""
    kinds: dict[str, list[float]] = {}
    for one in calls:
        for place, seconds in enumerate(one.steps):
            name = kind(report, place) + ", transition" * _ends_stage(report, place)
            kinds.setdefault(name, []).append(seconds)
    return {name: 1000 * statistics.median(values) for name, values in kinds.items()}


def transition_seconds(calls: Sequence[Timed], report: Report | None) -> float | None:
    """Median over the calls of what all transitions took: a stage's last step, less the median of its kind."""
    if report is None or len(report.stages) < 2:
        return None
    found = []
    for one in calls:
        own = step_kinds([one], report)
        ends = [place for place in range(len(one.steps)) if _ends_stage(report, place)]
        found.append(sum(one.steps[p] - own.get(kind(report, p), 1000 * one.steps[p]) / 1000 for p in ends))
    return statistics.median(found)


def _ends_stage(report: Report | None, place: int) -> bool:
    return (
        report is not None
        and place + 1 < len(report.steps)
        and report.steps[place].stage != report.steps[place + 1].stage
    )


def waits(pipe: Any, chosen: Sequence[Contestant], call: dict[str, Any]) -> dict[str, Any]:
    """By contestant: how often each step made the host wait, and the most that an ordinary one did; None without a GPU.

    Ordinary is what neither begins the run nor ends a stage.
    """
    found = {}
    for contestant in chosen:
        with contestant.on(pipe) as handle:
            latent = {**call, "output_type": "latent", "num_inference_steps": contestant.steps}
            counts = waits_by_step(pipe, latent)
            report = None if handle is None else handle.report
        ordinary = [n for place, n in enumerate(counts or []) if place and not _ends_stage(report, place)]
        found[contestant.label] = {
            "by_step": counts, "most": max(ordinary, default=None), "decides": contestant.decides
        }  # fmt: skip
    return found


def busy(pipe: Any, chosen: Sequence[Contestant], call: dict[str, Any]) -> dict[str, tuple[float, str] | None]:
    """By contestant: the share of the time in which a kernel was at work, and the profiler's table."""
    return {c.label: busy_share(lambda c=c: run(pipe, c, call)) for c in chosen}
