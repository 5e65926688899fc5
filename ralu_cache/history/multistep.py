"""Multistep solvers in flow time: the next canvas from clean estimates that were computed before.

Exponential integration: with l = log((1 - s) / s) and h = l' - l, dx/dl is linear in x, so a clean estimate D that
stays gives `x' = (s'/s) x + (1 - s') (1 - e^-h) D` exactly, and a polynomial in l through several of them adds terms.
Order 2 is DPM-Solver++(2M) (arXiv 2211.01095), which is also the predictor of UniPC (arXiv 2302.04867, B(h) = e^h - 1);
its corrector uses a computed estimate to mend the step that led to it. All weights are numbers on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NOISIEST = 1 - 1e-6  # level 1 has no finite l; stock solvers begin as far below it
CLEANEST = 1e-9  # levels below it are 0


def half_log_snr(sigma: float) -> float:
    """l of a level; infinite at level 0."""
    sigma = min(sigma, NOISIEST)
    return math.inf if sigma < CLEANEST else math.log((1 - sigma) / sigma)


def predictor(levels: Sequence[float], to: float) -> tuple[float, tuple[float, ...]]:
    """(a, w): `x' = a x + sum(w D)` from the newest of `levels` to the level `to`, one weight for each D.

    levels: of the estimates, newest first; their number is the order. At level 0 the canvas is the newest estimate.
    """
    h = half_log_snr(to) - half_log_snr(levels[0])
    if math.isinf(h):
        return 0.0, (1.0, *(0.0 for _ in levels[1:]))
    ratios = _ratios(levels, h)
    return _combined(levels[0], to, h, ratios, _rhos(ratios, -h))


def corrector(levels: Sequence[float], to: float) -> tuple[float, tuple[float, ...]]:
    """(a, w): as `predictor`, for a step that was made from the newest of `levels` and whose end was computed since.

    The first weight is that of the estimate at `to`, the others those of `levels`, newest first.
    """
    h = half_log_snr(to) - half_log_snr(levels[0])
    if math.isinf(h):
        return 0.0, (1.0, *(0.0 for _ in levels))
    ratios = np.append(_ratios(levels, h), 1.0)
    a, (own, *older, new) = _combined(levels[0], to, h, ratios, _rhos(ratios, -h))
    return a, (new, own, *older)


def _ratios(levels: Sequence[float], h: float) -> NDArray[np.float64]:
    """How far the older estimates stand from the newest, in lengths of the step."""
    start = half_log_snr(levels[0])
    return np.array([(half_log_snr(level) - start) / h for level in levels[1:]])


def _rhos(ratios: NDArray[np.float64], hh: float) -> NDArray[np.float64]:
    """The weights of the estimates' differences, with which polynomials in l of as high a degree are integrated.

    A single difference counts half, as in both papers' code: midway between the step's ends, not exact.
    """
    if len(ratios) < 2:
        return np.full(len(ratios), 0.5)
    rows, right, phi, factorial = [], [], math.expm1(hh) / hh - 1, 1
    for power in range(len(ratios)):
        rows.append(ratios**power)
        right.append(phi * factorial / math.expm1(hh))
        factorial *= power + 2
        phi = phi / hh - 1 / factorial
    return np.linalg.solve(np.array(rows), np.array(right))


def _combined(
    start: float, to: float, h: float, ratios: NDArray[np.float64], rhos: NDArray[np.float64]
) -> tuple[float, tuple[float, ...]]:
    """(a, w) with the newest estimate's weight first, then one for each ratio."""
    whole = -(1 - to) * math.expm1(-h)
    parts = whole * rhos / ratios if len(ratios) else np.zeros(0)
    return to / min(start, NOISIEST), (float(whole - parts.sum()), *map(float, parts))
