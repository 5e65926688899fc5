"""Noise schedules of staged sampling: NT-DM and the sigmas of each stage (RALU, arXiv 2507.08422).

Convention: sigma = 1 is pure noise, sigma = 0 is clean, x_sigma = (1 - sigma) * x0 + sigma * noise. The paper's time is
t = 1 - sigma; it appears in `ends` alone, so that presets read as the paper prints them. K is the number of stages.

Everywhere `steps` are the denoising steps N_k >= 1 of each stage; `ends` is t at the end of each stage, increasing from
above 0 to 1; `shifts` are the shift h_k > 0 of each stage; `z` is the Z > 1 of the transitions (>= 1, and unused, for a
single stage). Anything else raises ValueError with the value, as do lengths that differ.

A transition at level sigma continues at the higher level sigma' = Z sigma / (1 + (Z - 1) sigma). This module accepts
every Z > 1, for which sigma' > sigma; the paper's correlated noise exists for Z >= 2 only: whoever draws it checks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

GRID_POINTS = 1000
SHIFT_BOUNDS = (0.01, 100.0)
Z_BOUNDS = (2.0, 100.0)
DENSITY_FLOOR = 1e-10


def solve_nt_dm(steps: Sequence[int], ends: Sequence[float], shift: float = 3.0) -> tuple[tuple[float, ...], float]:
    """Noise-timestep distribution matching (arXiv 2507.08422): the shift of each stage and the Z of the transitions.

    Minimises the square root of the Jensen-Shannon divergence between the time steps that a staged plan visits and
    those of the unstaged schedule, in which the time ranges visited twice count for more. Sampled on a grid, this has
    many shallow local minima; minimiser, start, bounds and grid are those that find the authors' published values.

    shift: the model's own h (exp(mu) where it shifts dynamically), within [0.01, 100]. Returns the K shifts, and Z. A
    single stage has no transition: its shift is the model's and Z is 1, the value that leaves sigma as it is.
    """
    counts, times = _checked_steps(steps), _checked_ends(ends)
    if len(counts) != len(times):
        raise ValueError(f"steps and ends must have one value per stage, got {len(counts)} steps and {len(times)} ends")
    shift = _checked_positive("shift", shift)
    if not SHIFT_BOUNDS[0] <= shift <= SHIFT_BOUNDS[1]:
        raise ValueError(f"shift must lie within {list(SHIFT_BOUNDS)} to be solved for, got {shift}")
    return _solve(counts, times, shift)


def stage_sigmas(
    steps: Sequence[int], ends: Sequence[float], shifts: Sequence[float], z: float
) -> list[NDArray[np.float64]]:
    """The sigmas of each stage: sigma = h u / (1 + (h - 1) u), with u linear between the stage's ends.

    Returns K float64 arrays. Array k has N_k + 1 strictly decreasing values: the first is the level at which the stage
    starts (1 for the first stage), the last the level 1 - e_k at which it ends (0 for the last stage).
    """
    counts, times = _checked_steps(steps), _checked_ends(ends)
    if not len(counts) == len(times) == len(shifts):
        raise ValueError(
            "steps, ends and shifts must have one value per stage, "
            f"got {len(counts)} steps, {len(times)} ends and {len(shifts)} shifts"
        )
    hs = [_checked_positive(f"shifts[{k}]", h) for k, h in enumerate(shifts)]
    stages = zip(counts, stage_starts(times, z), times, hs, strict=True)
    return [_shifted_line(n, start, 1 - e, h) for n, start, e, h in stages]


def stage_starts(ends: Sequence[float], z: float) -> tuple[float, ...]:
    """Sigma at which each stage starts: 1, then the renoised level of each earlier stage's end.

    Raises ValueError for a Z so large that a stage would start at pure noise.
    """
    times = _checked_ends(ends)
    z = _checked_z(z)
    if len(times) > 1 and z == 1:
        raise ValueError(f"z must be > 1 for {len(times)} stages, got {z}: a transition must raise sigma")
    starts = (1.0, *(renoised_sigma(1 - e, z) for e in times[:-1]))
    if any(sigma >= 1 for sigma in starts[1:]):
        raise ValueError(f"z = {z} is too large: a stage after the first would start at pure noise")
    return starts


def end_before_zero(sigmas: Sequence[float], terminal: float) -> tuple[float, ...]:
    """The levels of a last stage, stretched away from its start so that the last one before 0 is `terminal`.

    Of a schedule that starts at 1 this makes what diffusers' schedulers make of it with `shift_terminal`. A single
    step from the start to 0 stays what it is.

    sigmas: N + 1 decreasing levels, the last one 0. terminal: where the last of N steps begins, between 0 and the first
    level; raises ValueError for another one.
    """
    start, last = sigmas[0], sigmas[-2]
    if not 0 < terminal < start:
        raise ValueError(
            f"shift_terminal must lie between 0 and {start:.4g}, where the last stage starts, got {terminal}; let the "
            "stage before end earlier"
        )
    if len(sigmas) == 2:
        return tuple(sigmas)
    stretch = (start - terminal) / (start - last)
    return (*(start - (start - sigma) * stretch for sigma in sigmas[:-1]), 0.0)


def renoised_sigma(sigma: float, z: float) -> float:
    """Level after a transition (arXiv 2507.08422): sigma' = Z sigma / (1 + (Z - 1) sigma), of sigma within [0, 1].

    The levels 0 and 1 stay where they are; Z = 1 leaves every level as it is.
    """
    sigma, z = float(sigma), _checked_z(z)
    if not 0 <= sigma <= 1:
        raise ValueError(f"sigma must lie within [0, 1], got {sigma}")
    return z * sigma / (1 + (z - 1) * sigma)


def split_steps(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Divide `total` steps over the stages in the proportion of `weights`, by largest remainder.

    Every stage gets at least one step. Of two equal remainders the earlier stage's is served first. weights: a positive
    number for each stage, such as the step counts of a preset. Raises ValueError for a total that is no integer, or too
    small for one step each.
    """
    total = _checked_count("total", total)
    if len(weights) == 0:
        raise ValueError("weights must have one value per stage, got none")
    parts = [Fraction(_checked_positive(f"weights[{k}]", w)) for k, w in enumerate(weights)]
    if total < len(parts):
        raise ValueError(f"{total} steps cannot give each of {len(parts)} stages one step")
    quotas = [total * part / sum(parts) for part in parts]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda k: counts[k] - quotas[k])
    for k in by_remainder[: total - sum(counts)]:
        counts[k] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return tuple(counts)


@lru_cache(maxsize=256)
def _solve(steps: tuple[int, ...], ends: tuple[float, ...], shift: float) -> tuple[tuple[float, ...], float]:
    """Minimise over (h_1, ..., h_K, Z), starting from the model's shift and the smallest Z."""
    if len(steps) == 1:
        return (shift,), 1.0
    from scipy.optimize import minimize
    from scipy.spatial.distance import jensenshannon

    t = np.linspace(0, 1, GRID_POINTS)

    def distance(x: FloatArray) -> float:
        starts = _start_times(ends, x[-1])
        return jensenshannon(_target(t, starts, ends, shift), _plan(t, steps, starts, ends, x[:-1]))

    bounds = [SHIFT_BOUNDS] * len(steps) + [Z_BOUNDS]
    solution = minimize(distance, [shift] * len(steps) + [Z_BOUNDS[0]], method="L-BFGS-B", bounds=bounds).x
    return tuple(float(h) for h in solution[:-1]), float(solution[-1])


def _start_times(ends: tuple[float, ...], z: float) -> list[float]:
    """s_1 = 0, s_{k+1} = e_k / (Z (1 - e_k) + e_k)."""
    return [0.0] + [e / (z * (1 - e) + e) for e in ends[:-1]]


def _target(t: FloatArray, starts: Sequence[float], ends: Sequence[float], shift: float) -> FloatArray:
    """P* ~ f_h + sum_k (e_k - s_{k+1}) f_h on [s_{k+1}, e_k]: the unstaged density, plus the time visited twice."""
    density = _density(t, shift, 0.0, 1.0)
    for start, end in zip(starts[1:], ends[:-1], strict=True):
        density = density + (end - start) * _density(t, shift, start, end)
    return density / density.sum() + DENSITY_FLOOR


def _plan(
    t: FloatArray, steps: Sequence[int], starts: Sequence[float], ends: Sequence[float], shifts: FloatArray
) -> FloatArray:
    """P = sum_k N_k f_{h_k} on [s_k, e_k] / sum N: the density of the staged plan."""
    stages = zip(steps, shifts, starts, ends, strict=True)
    density = sum((n * _density(t, h, start, end) for n, h, start, end in stages), np.zeros_like(t)) / sum(steps)
    return density / density.sum() + DENSITY_FLOOR


def _density(t: FloatArray, h: float, start: float, end: float) -> FloatArray:
    """f_h(t) = h / (1 + (h - 1) t)^2 within [start, end], with integral 1 there."""
    inside = (t >= start) & (t <= end)
    mass = h * end / (1 + (h - 1) * end) - h * start / (1 + (h - 1) * start)
    return np.where(inside, h / (1 + (h - 1) * t) ** 2 / mass, 0.0)


def _shifted_line(steps: int, start: float, end: float, h: float) -> FloatArray:
    """sigma = h u / (1 + (h - 1) u) for steps + 1 values of u, linear between those of the given ends."""
    u_start, u_end = start / (h - (h - 1) * start), end / (h - (h - 1) * end)
    u = np.linspace(u_start, u_end, steps + 1)
    sigmas = h * u / (1 + (h - 1) * u)
    sigmas[0], sigmas[-1] = start, end
    return sigmas


def _checked_steps(steps: Sequence[int]) -> tuple[int, ...]:
    if len(steps) == 0:
        raise ValueError("steps must have one value per stage, got none")
    return tuple(_checked_count(f"steps[{k}]", n) for k, n in enumerate(steps))


def _checked_count(name: str, value: int) -> int:
    """An integer of any type that converts without loss (NumPy's too), >= 1."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    return count


def _checked_ends(ends: Sequence[float]) -> tuple[float, ...]:
    times = tuple(float(e) for e in ends)
    increasing = all(a < b for a, b in zip((0.0, *times), times, strict=False))
    if not times or not increasing or times[-1] != 1:
        raise ValueError(f"ends must be times t = 1 - sigma that increase from above 0 to exactly 1, got {times}")
    return times


def _checked_positive(name: str, value: float) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return number


def _checked_z(z: float) -> float:
    number = float(z)
    if not (math.isfinite(number) and number >= 1):
        raise ValueError(f"z must be a finite number > 1 (or 1, for no change of level), got {z!r}")
    return number
