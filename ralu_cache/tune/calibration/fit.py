"""The fit of TeaCache's polynomial (arXiv 2411.19108, eq. 7): the output's change as a function of the signal's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from ralu_cache.plane.checks import check_integer
from ralu_cache.plane.spatial import SpatialMethod
from ralu_cache.report.report import Report
from ralu_cache.temporal.profile import Profile, StageFit
from ralu_cache.tune.calibration.watch import Trace, watch_runs

DEGREE = 4  # of the published polynomials
PAIRS_EACH = 3  # pairs that a coefficient needs
CANCELLATION = 1e3  # sum of |terms| from which float32, in which the polynomial is evaluated, loses the fourth digit
LIBRARIES = ("ralu-cache", "torch", "diffusers")

Pairs = NDArray[np.float64]  # (P, 2): change of the signal, change of the output


def calibrate(
    pipe: Any,
    calls: Iterable[Mapping[str, Any]],
    spatial: str | SpatialMethod | None = None,
    degree: int = DEGREE,
    model: str | None = None,
) -> Profile:
    """The profile of a pipeline from uncached runs: one for each of `calls`, the arguments of the pipeline's call.

    spatial: the plan whose stages are fitted, as `accelerate` takes it; None has a single stage. model: the name to
    note, by default the pipeline's class. Raises what `accelerate` and `fit_stages` raise.
    """
    calls = list(calls)
    traces, report = watch_runs(pipe, calls, spatial)
    return fit_profile(stage_pairs(traces), report, calls[0], degree, model or type(pipe).__name__)


def fit_profile(
    stages: Sequence[Pairs], report: Report, call: Mapping[str, Any], degree: int = DEGREE, model: str = ""
) -> Profile:
    """The profile of watched runs: the fits of each stage's pairs, and what `report` and `call` say of the runs."""
    return Profile(
        model=model,
        plan=report.spatial,
        steps=len(report.steps),
        stages=fit_stages(stages, degree),
        arguments={name: value for name, value in call.items() if isinstance(value, bool | int | float)},
        versions={name: version(name) for name in LIBRARIES},
    )


def stage_pairs(traces: Sequence[Trace]) -> list[Pairs]:
    """The pairs of each stage, in the order of the plan; a step without a step before it in its stage has none."""
    stages = 1 + max(situation.stage for trace in traces for situation in trace.situations)
    found: list[list[tuple[float, float]]] = [[] for _ in range(stages)]
    for trace in traces:
        for situation, x, y in zip(trace.situations, trace.signal, trace.output, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                found[situation.stage].append((x, y))
    return [np.array(pairs, dtype=np.float64).reshape(-1, 2) for pairs in found]


def fit_stages(stages: Sequence[Pairs], degree: int = DEGREE) -> tuple[StageFit, ...]:
    """The least-squares polynomial of each stage; one without pairs (a single step) gets that of all pairs together.

    Raises ValueError for a negative degree, and if there are no pairs at all.
    """
    check_integer("degree", degree, 0)
    everything = np.concatenate(stages)
    if not len(everything):
        raise ValueError("no stage has two steps in a row, so there is no change to fit; calibrate with more steps")
    return tuple(fit(pairs if len(pairs) else everything, degree) for pairs in stages)


def fit(pairs: Pairs, degree: int = DEGREE) -> StageFit:
    """Least squares through pairs (P, 2), P > 0, of at most that degree.

    The degree is lower where there are fewer than three different changes for each coefficient, and where the range is
    so narrow that float32 could not evaluate the polynomial.
    """
    x, y = pairs.T
    degree = max(0, min(degree, len(np.unique(x)) // PAIRS_EACH - 1))
    coefficients = _least_squares(x, y, degree)
    while degree and np.polyval(np.abs(coefficients), np.abs(x).max()) > CANCELLATION:
        degree -= 1
        coefficients = _least_squares(x, y, degree)
    missed = np.square(y - np.polyval(coefficients, x))
    spread = np.square(y - y.mean()).sum()
    return StageFit(
        coefficients=tuple(coefficients.tolist()),
        range=(float(x.min()), float(x.max())),
        rms=float(np.sqrt(missed.mean())),
        r2=float(1 - missed.sum() / spread) if spread else None,
        pairs=len(pairs),
    )


def _least_squares(x: NDArray[np.float64], y: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Highest power first; solved on [-1, 1], where the powers are told apart best."""
    if not degree:
        return np.array([y.mean()])
    solved = np.asarray(Polynomial.fit(x, y, degree).convert().coef, dtype=np.float64)
    return np.pad(solved, (0, degree + 1 - len(solved)))[::-1]
