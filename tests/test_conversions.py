"""Outputs, clean estimates and velocities; trails, on which they go on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.history.conversions import KINDS, Place, Reading, affine
from ralu_cache.history.multistep import corrector, predictor
from ralu_cache.history.solvers import Multistep
from ralu_cache.history.trail import Trail, leap, mend

places = st.builds(Place, st.floats(0.05, 1.0), st.floats(0.05, 20.0))


def tensors(seed: int) -> tuple[Tensor, Tensor]:
    x0, noise = torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x0, noise


@given(places, st.integers(0, 99), st.floats(0.3, 2.0))
def test_what_outputs_mean_is_what_their_definitions_say(place: Place, seed: int, scale: float) -> None:
    x0, noise = tensors(seed)
    alpha, sigma = place.alpha, place.sigma
    x = alpha * x0 + sigma * noise
    norm = (alpha**2 + sigma**2) ** 0.5
    skip = scale**2 / (sigma**2 + scale**2)  # EDM, table 1
    out = sigma * scale / (sigma**2 + scale**2) ** 0.5
    outputs = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": (alpha * noise - sigma * x0) / norm,
        "edm_epsilon": (x0 - skip * x) / out,
        "edm_v_prediction": -(x0 - skip * x) / out,
    }
    for kind, output in outputs.items():
        torch.testing.assert_close(Reading(kind, "clean", scale).value(place, x, output), x0)
        torch.testing.assert_close(Reading(kind, "velocity", scale).value(place, x, output), noise - x0)


@given(st.floats(0.02, 0.98), st.integers(0, 99))
def test_flows_and_those_that_point_at_the_data(sigma: float, seed: int) -> None:
    x0, noise = tensors(seed)
    place, x = Place(1 - sigma, sigma), (1 - sigma) * x0 + sigma * noise
    for kind, output in {"flow_prediction": noise - x0, "data_velocity": x0 - noise}.items():
        torch.testing.assert_close(Reading(kind, "clean").value(place, x, output), x0)
        torch.testing.assert_close(Reading(kind, "velocity").value(place, x, output), noise - x0)
    assert place.share == pytest.approx(sigma)


@given(st.sampled_from(KINDS), st.sampled_from(["clean", "velocity", "output"]), places, st.integers(0, 99))
def test_there_and_back(kind: str, quantity: str, place: Place, seed: int) -> None:
    sample, output = tensors(seed)
    reading = Reading(kind, quantity, 0.7)
    value = reading.value(place, sample, output)
    torch.testing.assert_close(reading.output(place, sample, value), output, rtol=1e-8, atol=1e-8)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'noise'; known: flow_prediction"):
        affine("noise", Place(0.5, 0.5))


# ---- trails


def trail(*levels: float, depth: int = 4) -> Trail:
    """Nodes on the line 2 - 3 s."""
    found = Trail(depth)
    for level in levels:
        found = found.record(level, torch.full((2, 3), 2 - 3 * level))
    return found


def test_a_line_goes_on() -> None:
    torch.testing.assert_close(trail(0.9, 0.7).forecast(0.5), torch.full((2, 3), 0.5))
    assert torch.equal(trail(0.7).forecast(0.5), torch.full((2, 3), 2 - 3 * 0.7)), "one node says that nothing moves"
    half = trail(0.9, 0.7).forecast(0.5, damping=0.5)
    torch.testing.assert_close(half, torch.full((2, 3), 0.5 - 0.3))


def test_a_trail_keeps_so_many_nodes_and_those_of_one_shape_alone() -> None:
    assert trail(0.9, 0.8, 0.7, 0.6, depth=3).levels == [0.6, 0.7, 0.8]
    assert trail(0.9, 0.8).nbytes == 2 * 6 * 4
    assert trail(0.9, 0.8).record(0.7, torch.zeros(2, 2)).levels == [0.7]


def test_a_solver_reads_a_trail() -> None:
    solver, x = Multistep(), torch.ones(2, 3)
    known = trail(0.9, 0.7)
    moved, made = leap(solver, known, x, 0.5, left=3)
    a, weights = predictor((0.7, 0.9), 0.5)
    torch.testing.assert_close(moved, a * x + weights[0] * (2 - 2.1) + weights[1] * (2 - 2.7))
    assert made.levels == (0.7, 0.9)
    a, weights = corrector((0.7, 0.9), 0.5)
    newest = torch.full((2, 3), 5.0)
    mended = a * x + weights[0] * newest + weights[1] * (2 - 2.1) + weights[2] * (2 - 2.7)
    torch.testing.assert_close(mend(solver, known.record(0.5, newest), made, moved), mended)
    for unmended in (
        mend(Multistep(corrector=False), known.record(0.5, x), made, moved),
        mend(solver, known.record(0.5, x), None, moved),
        mend(solver, Trail().record(0.5, x), made, moved),
    ):
        assert unmended is moved
    assert leap(solver, known, x, 0.5, left=1)[1].levels == (0.7,), "the last steps are of a lower order"
