"""The solver against the authors' values; the sigmas against the formulas of arXiv 2507.08422."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from ralu_cache.plane.schedule import (
    end_before_zero,
    renoised_sigma,
    solve_nt_dm,
    split_steps,
    stage_sigmas,
    stage_starts,
)

CASES = json.loads((Path(__file__).parent / "data" / "ralu_ntdm.json").read_text())["cases"]
case = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c["N"])))


@case
def test_solver_reproduces_the_authors_values(case):
    shifts, z = solve_nt_dm(case["N"], case["E"], 3.0)
    np.testing.assert_allclose(shifts, case["h"], rtol=0, atol=1e-2)
    assert z == pytest.approx(case["Z"], abs=1e-2)
    for ours, theirs in zip(stage_sigmas(case["N"], case["E"], shifts, z), case["sigmas"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@case
def test_sigmas_of_the_published_shifts(case):
    sigmas = stage_sigmas(case["N"], case["E"], case["h"], case["Z"])
    assert [len(s) for s in sigmas] == [n + 1 for n in case["N"]]
    for ours, theirs in zip(sigmas, case["sigmas"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5)


def test_one_stage_is_the_models_own_schedule():
    shifts, z = solve_nt_dm((4,), (1.0,), 3.0)
    assert (shifts, z) == ((3.0,), 1.0)
    (sigmas,) = stage_sigmas((4,), (1.0,), shifts, z)
    u = np.linspace(1, 0, 5)
    np.testing.assert_allclose(sigmas, 3 * u / (1 + 2 * u), atol=1e-15)
    assert renoised_sigma(0.4, z) == 0.4


@pytest.mark.parametrize(
    ("steps", "ends"),
    [((4, 6), (0.4, 1.0)), ((1, 1, 2), (0.3, 0.45, 1.0)), ((3, 3, 4, 6), (0.2, 0.3, 0.5, 1.0)), ((1, 1), (0.01, 1.0))],
)
@pytest.mark.parametrize("shift", [1.0, 3.0, math.exp(1.15)])
def test_any_number_of_stages(steps, ends, shift):
    shifts, z = solve_nt_dm(steps, ends, shift)
    assert len(shifts) == len(steps) and all(0.01 <= h <= 100 for h in shifts) and 2 <= z <= 100
    for sigmas in stage_sigmas(steps, ends, shifts, z):
        assert (np.diff(sigmas) < 0).all()


def test_solver_remembers_what_it_solved():
    first = solve_nt_dm([5, 6, 8], [0.3, 0.45, 1.0])
    assert solve_nt_dm(np.array([5, 6, 8]), np.array([0.3, 0.45, 1.0]), 3) is first


def test_scipy_is_imported_by_the_solver_alone():
    code = "import sys, ralu_cache.plane.schedule as s; assert 'scipy' not in sys.modules; s.solve_nt_dm((3,), (1.0,));"
    subprocess.run([sys.executable, "-c", code + "assert 'scipy' not in sys.modules"], check=True)


@st.composite
def plans(draw):
    count = draw(st.integers(1, 5))
    inner = draw(st.lists(st.integers(1, 99), min_size=count - 1, max_size=count - 1, unique=True))
    ends = [e / 100 for e in sorted(inner)] + [1.0]
    steps = draw(st.lists(st.integers(1, 12), min_size=count, max_size=count))
    shifts = draw(st.lists(st.floats(0.1, 20), min_size=count, max_size=count))
    return steps, ends, shifts, draw(st.floats(1.01, 50))


@given(plans())
def test_stages_start_renoised_fall_and_end_on_time(plan):
    steps, ends, shifts, z = plan
    sigmas = stage_sigmas(steps, ends, shifts, z)
    assert tuple(s[0] for s in sigmas) == stage_starts(ends, z)
    assert [s[-1] for s in sigmas] == [1 - e for e in ends]
    assert sigmas[0][0] == 1 and sigmas[-1][-1] == 0
    for n, stage in zip(steps, sigmas, strict=True):
        assert stage.dtype == np.float64 and stage.shape == (n + 1,)
        assert (np.diff(stage) < 0).all()
    for before, after in pairwise(sigmas):
        assert after[0] > before[-1]


@given(st.floats(0, 1), st.floats(1, 50), st.floats(1, 50))
def test_renoising_composes_and_keeps_the_ends(sigma, z1, z2):
    assert renoised_sigma(renoised_sigma(sigma, z1), z2) == pytest.approx(renoised_sigma(sigma, z1 * z2), abs=1e-12)
    assert renoised_sigma(0.0, z1) == 0 and renoised_sigma(1.0, z1) == pytest.approx(1, abs=1e-15)


def test_renoised_sigma_multiplies_the_noise_to_signal_ratio():
    after = renoised_sigma(0.7, 6.0)
    assert after / (1 - after) == pytest.approx(6.0 * 0.7 / 0.3)


@settings(max_examples=200)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 60))
def test_split_steps_is_a_fair_division(weights, extra):
    total = len(weights) + extra
    counts = split_steps(total, weights)
    assert sum(counts) == total and min(counts) >= 1
    quotas = [total * w / sum(weights) for w in weights]
    if min(quotas) >= 1:
        assert all(abs(n - q) < 1 + 1e-9 for n, q in zip(counts, quotas, strict=True))


@pytest.mark.parametrize(
    ("total", "counts"), [(18, (5, 6, 7)), (36, (10, 12, 14)), (20, (5, 7, 8)), (4, (1, 1, 2)), (3, (1, 1, 1))]
)
def test_split_steps_examples(total, counts):
    assert split_steps(total, (5, 6, 7)) == counts


@pytest.mark.parametrize(
    ("total", "weights"), [(2, (1, 1, 1)), (5, ()), (5, (1, 0)), (5, (1, math.nan)), (2.5, (1, 1))]
)
def test_split_steps_rejects(total, weights):
    with pytest.raises(ValueError, match=r"got|cannot"):
        split_steps(total, weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": (5, 6)}, "2 steps"),
        ({"steps": (5, 6, 0)}, r"steps\[2\].*0"),
        ({"steps": (5, 6.5, 7)}, r"steps\[1\].*6.5"),
        ({"steps": (5, True, 7)}, r"steps\[1\].*True"),
        ({"steps": ()}, "none"),
        ({"ends": (0.45, 0.3, 1.0)}, "0.45, 0.3"),
        ({"ends": (0.3, 0.3, 1.0)}, "0.3, 0.3"),
        ({"ends": (0.3, 0.45, 0.9)}, "0.9"),
        ({"ends": (0.3, math.nan, 1.0)}, "nan"),
        ({"ends": (-0.1, 0.45, 1.0)}, "-0.1"),
        ({"ends": (0.0, 0.45, 1.0)}, "0.0"),
        ({"ends": (0.3, 1.0)}, "2 ends"),
        ({"shifts": (1.0, 2.0)}, "2 shifts"),
        ({"shifts": (1.0, 0.0, 2.0)}, r"shifts\[1\].*0.0"),
        ({"shifts": (1.0, 2.0, math.inf)}, r"shifts\[2\].*inf"),
        ({"z": 1.0}, "1.0"),
        ({"z": math.nan}, "nan"),
        ({"z": -3.0}, "-3.0"),
        ({"z": 1e300}, "pure noise"),
    ],
)
def test_stage_sigmas_rejects(changes, message):
    plan = {"steps": (5, 6, 7), "ends": (0.3, 0.45, 1.0), "shifts": (5.0, 2.6, 2.2), "z": 6.3}
    with pytest.raises(ValueError, match=message):
        stage_sigmas(**(plan | changes))


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, 1e6])
def test_solver_rejects_a_shift(shift):
    with pytest.raises(ValueError, match="shift"):
        solve_nt_dm((5, 6), (0.3, 1.0), shift)
    with pytest.raises(ValueError, match="2 steps and 3 ends"):
        solve_nt_dm((5, 6), (0.3, 0.45, 1.0))


@pytest.mark.parametrize("sigma", [-0.1, 1.1, math.nan])
def test_renoised_sigma_rejects(sigma):
    with pytest.raises(ValueError, match=str(sigma)):
        renoised_sigma(sigma, 2.0)


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=9, unique=True), st.floats(0.01, 0.9))
def test_a_stretched_stage_keeps_its_start_and_proportions_and_ends_before_zero(levels, terminal):
    sigmas = (1.0, *sorted(levels, reverse=True), 0.0)
    stretched = end_before_zero(sigmas, terminal)
    assert stretched[0] == 1.0 and stretched[-1] == 0.0 and stretched[-2] == pytest.approx(terminal)
    np.testing.assert_allclose(
        (1 - np.array(stretched[:-1])) / (1 - terminal), (1 - np.array(sigmas[:-1])) / (1 - sigmas[-2]), atol=1e-9
    )


def test_stretching_is_that_of_the_stock_scheduler():
    stock, plain = (FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=end) for end in (0.02, None))
    for scheduler in (stock, plain):
        scheduler.set_timesteps(7)
    np.testing.assert_allclose(end_before_zero(plain.sigmas.tolist(), 0.02), stock.sigmas, atol=1e-6)


def test_a_single_step_is_not_stretched_and_ill_terminals_are_refused():
    assert end_before_zero((0.5, 0.0), 0.02) == (0.5, 0.0)
    for terminal in (0.0, -0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match=rf"between 0 and 0.5, .* got {terminal}"):
            end_before_zero((0.5, 0.2, 0.0), terminal)
