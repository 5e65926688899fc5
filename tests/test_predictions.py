"""Histories of predictions: their laws as properties, without a pipeline. Where each is tested, and its planted fault.

(a) a node is never read under a layout that it was not moved to; (b) transfers compose, kept tokens keep bits;
(c) permuting tokens permutes; (d) a sample does not depend on its batch; (e) a velocity that is linear in sigma is
forecast exactly, at any gap; (f) a clean estimate that stays gives the exact end, over any number of transitions;
(g) nothing that isn't finite is kept; (h) memory is bounded. What needs pipelines is in test_forecasts.py. The faults
are in `benchmarks/mutants/predictions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache import RALU, Forecast, Multistep
from ralu_cache.engine.autoencoder import Autoencoder
from ralu_cache.engine.deciding import Verifier
from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.groups import Uncounted
from ralu_cache.engine.predictions import predictions_of
from ralu_cache.engine.run import Run
from ralu_cache.history.control import Pace
from ralu_cache.history.feature import StaleFeature
from ralu_cache.history.lines import chosen, forecast
from ralu_cache.history.marks import Mark
from ralu_cache.history.multistep import corrector, predictor
from ralu_cache.history.nodes import Predictions
from ralu_cache.history.solvers import resolve_solver
from ralu_cache.plane.canvas import TokenLayout, coarsen
from ralu_cache.plane.token_map import Kind, map_tokens
from ralu_cache.report.report import Report
from tests.strategies import chains, layouts, pairs

CHANNELS = 2
seeds = st.integers(0, 10**6)


def canvas(layout: TokenLayout, seed: int) -> Tensor:
    """A canvas of the layout."""
    rows, columns = layout.fine_grid
    shape = (layout.batch, CHANNELS, rows * layout.patch, columns * layout.patch)
    return layout.project(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def history(layout: TokenLayout, levels: Sequence[float], seed: int = 0, depth: int = 4) -> Predictions:
    """Random predictions at some levels, the newest last; their conditions are those of a run that was told none."""
    known, kinds = Predictions(layout, depth), [()] * layout.batch
    for number, level in enumerate(levels):
        known = known.record(canvas(layout, seed + 2 * number), canvas(layout, seed + 2 * number + 1), level, kinds)
    return known


def like(layout: TokenLayout, rows: Sequence[int]) -> TokenLayout:
    return TokenLayout(layout.refined[list(rows)], layout.patch)


@given(layouts(), seeds)
def test_no_node_is_read_under_another_layout(layout: TokenLayout, seed: int) -> None:
    """(a) Not even under one that refines the same cells."""
    known, other = history(layout, [0.9], seed), like(layout, range(layout.batch))
    with pytest.raises(StaleFeature):
        forecast(known, other, 0.8, "clean")
    moved = known.transfer(other)
    assert torch.equal(forecast(moved, other, 0.8, "clean"), known.nodes[0].clean)


@given(chains(3), seeds)
def test_refining_in_two_steps_is_refining_in_one(chain: list[TokenLayout], seed: int) -> None:
    """(b)"""
    known = history(chain[0], [0.9, 0.8], seed)
    twice, once = known.transfer(chain[1]).transfer(chain[2]), known.transfer(chain[2])
    for a, b in zip(twice.nodes, once.nodes, strict=True):
        assert torch.equal(a.clean, b.clean) and torch.equal(a.velocity, b.velocity) and torch.equal(a.mark, b.mark)


@given(pairs(), seeds, st.booleans())
def test_what_a_transfer_makes_of_each_kind_of_token(
    both: tuple[TokenLayout, TokenLayout], seed: int, noised: bool
) -> None:
    """(b) Kept tokens keep their bits, split ones are their parent, merged ones the mean; marks say which."""
    old, new = both
    known, kind = history(old, [0.9], seed), map_tokens(old, new).kind
    changed = torch.rand(kind.shape, generator=torch.Generator().manual_seed(seed)) < 0.3 if noised else None
    before, after = known.nodes[0], known.transfer(new, changed=changed).nodes[0]
    merged = old.fine_pixels & ~new.fine_pixels
    assert torch.equal(after.clean, torch.where(merged, coarsen(before.clean), before.clean))
    weaker = kind != Kind.KEPT if changed is None else (kind != Kind.KEPT) | changed
    assert torch.equal(after.mark == Mark.INHERITED, weaker)


@given(layouts(), seeds)
def test_the_noise_beside_a_clean_estimate_changes_as_the_transition_says(layout: TokenLayout, seed: int) -> None:
    known, new = history(layout, [0.9], seed), like(layout, range(layout.batch))
    fresh = canvas(layout, seed + 9)
    moved = known.transfer(new, lambda noise: 0.5 * noise + fresh).nodes[0]
    before = known.nodes[0]
    expected = 0.5 * (before.clean + before.velocity) + fresh - before.clean
    torch.testing.assert_close(moved.velocity, expected, atol=1e-5, rtol=1e-5)


@given(pairs(), seeds, st.sampled_from(["clean", "velocity"]))
def test_mirroring_the_plane_mirrors_forecasts(
    both: tuple[TokenLayout, TokenLayout], seed: int, quantity: str
) -> None:
    """(c)"""
    old, new = both
    known = history(old, [0.9, 0.7], seed)
    mirrors = [TokenLayout(layout.refined.flip(2), layout.patch) for layout in both]
    mirrored = Predictions(mirrors[0])
    for node in reversed(known.nodes):
        mirrored = mirrored.record(node.clean.flip(3), node.velocity.flip(3), node.levels[0])
    here = forecast(known.transfer(new), new, 0.5, quantity)
    there = forecast(mirrored.transfer(mirrors[1]), mirrors[1], 0.5, quantity)
    torch.testing.assert_close(there, here.flip(3), atol=1e-6, rtol=1e-6)


@settings(max_examples=40)
@given(
    layouts(),
    st.lists(st.tuples(st.floats(0.1, 0.9), st.sampled_from(["mine", "others", "all"])), min_size=2, max_size=7), seeds,
)  # fmt: skip
def test_a_sample_alone_is_forecast_as_in_the_batch(
    layout: TokenLayout, steps: list[tuple[float, str]], seed: int
) -> None:
    """(d) Bit for bit, whichever steps it and its neighbours compute; another batch, and a smaller one, too."""
    last = layout.batch - 1
    alone = like(layout, [last])
    together, one = Predictions(layout), Predictions(alone)
    for number, (level, who) in enumerate([(0.95, "all"), *steps]):
        clean, velocity = canvas(layout, seed + 2 * number), canvas(layout, seed + 2 * number + 1)
        rows = [row for row in range(layout.batch) if who == "all" or (row == last) == (who == "mine")]
        together = together.record(clean, velocity, level, rows=rows) if rows else together
        one = one.record(clean[-1:], velocity[-1:], level) if last in rows else one
    for quantity in ("clean", "velocity"):
        mine = forecast(one, alone, 0.05, quantity)
        assert torch.equal(forecast(together, layout, 0.05, quantity)[-1:], mine)
        assert torch.equal(forecast(together.pick([last], alone), alone, 0.05, quantity), mine)


@given(
    layouts(), seeds, st.lists(st.integers(0, 1000), min_size=2, max_size=5, unique=True), st.floats(0, 1),
    st.sampled_from([0.0, 0.3, 0.6, 1.0]),
)  # fmt: skip
def test_what_is_linear_in_sigma_is_forecast_exactly_at_any_gap(
    layout: TokenLayout, seed: int, levels: list[float], at: float, gap: float
) -> None:
    """(e) By order 1, where two nodes stand far enough apart; the newest alone stays as it is.

    Levels in thousandths: a line over the whole schedule through two that are nearer is float32's rounding alone.
    """
    levels = [level / 1000 for level in levels]
    start, slope = canvas(layout, seed), canvas(layout, seed + 1)
    known = Predictions(layout, 5)
    for level in levels:
        known = known.record(start + level * slope, -start + level * slope, level)
    read = chosen(levels[::-1], at, 1, gap)
    for quantity, base in (("clean", start), ("velocity", -start)):
        found = forecast(known, layout, at, quantity, 1, gap)
        if len(read) == 1:
            assert torch.equal(found, known.nodes[0].value(quantity))
        else:
            reach = abs((at - levels[-1]) / (levels[::-1][read[1]] - levels[-1]))
            torch.testing.assert_close(found, base + at * slope, atol=1e-5 * (1 + reach), rtol=1e-4)


def test_the_nodes_of_a_line_stand_apart() -> None:
    levels = [0.5, 0.52, 0.6, 0.9]
    assert chosen(levels, 0.45) == (0, 2)  # 0.02 is less than 0.6 of 0.05
    assert chosen(levels, 0.45, gap=0.0) == (0, 1)
    assert chosen(levels, 0.3, gap=1.0) == (0, 3)
    assert chosen(levels, 0.3, order=2) == (0, 3)  # there is no third one
    assert chosen(levels, 0.4, order=2) == (0, 2, 3)
    assert chosen(levels, 0.0, gap=1.0) == (0,)
    assert chosen(levels, 0.5) == (0,) and chosen(levels, 0.4, order=0) == (0,)
    with pytest.raises(ValueError, match="no node"):
        chosen([], 0.5)


def test_what_was_computed_below_the_level_is_not_read_behind_a_transition() -> None:
    """A transition leads up again: coarse nodes at 0.9 to 0.7 stand on both sides of the first fine one, at 0.8."""
    layout, new = TokenLayout.coarse(2, 2, 2, 1), TokenLayout.fine(2, 2, 2, 1)
    for transition, left in (("keep", [0.8, 0.9]), ("trend", [0.8, 0.7, 0.75, 0.9])):
        run = predictions_of(Forecast(9, transition=transition, quantity="clean"), None, 2)
        assert run is not None
        run.known = history(layout, [0.9, 0.75, 0.7])
        run.transfer(new, lambda noise: noise, torch.zeros(2, 16, dtype=torch.bool))
        run.skipped = frozenset({1})  # which has computed nothing behind it yet
        fine = torch.ones_like(run.known.nodes[0].clean)
        run.take(fine, torch.zeros_like(fine), 0.8, new, True)
        assert run.known is not None
        assert run.known.levels(0) == left and run.known.levels(1) == [0.7, 0.75, 0.9]
        run.skipped = frozenset()
        run.take(fine, torch.zeros_like(fine), 0.78, new, True)
        assert run.known.levels(0) == [0.78, *left][:4], "what is computed since stays"


@given(layouts(), st.integers(1, 4), st.integers(1, 7), seeds)
def test_the_oldest_nodes_go_first(layout: TokenLayout, depth: int, count: int, seed: int) -> None:
    """(h)"""
    levels = [1 - number / 10 for number in range(count)]
    known = history(layout, levels, seed, depth)
    assert known.levels(0) == levels[::-1][:depth]
    node = known.nodes[0]
    assert known.nbytes == len(known.nodes) * (2 * node.clean.nbytes + node.mark.nbytes)


def test_predictions_of_another_batch_or_of_two_shapes_are_refused() -> None:
    layout = TokenLayout.coarse(2, 1, 2, patch=2)
    here, other = canvas(layout, 0), canvas(TokenLayout.coarse(1, 1, 2, patch=2), 1)
    for pair in ((here, other), (other, here), (other, other)):
        with pytest.raises(ValueError, match="predictions of 2 samples expected"):
            Predictions(layout).record(*pair, 0.5)


@given(layouts(), seeds, st.sampled_from([torch.nan, torch.inf]))
def test_nothing_that_is_not_finite_is_kept(layout: TokenLayout, seed: int, broken: float) -> None:
    """(g) The last finite values of that sample stand in; its neighbours' new ones are kept."""
    known = history(layout, [0.9], seed)
    clean, velocity = canvas(layout, seed + 5), canvas(layout, seed + 6)
    velocity[0, 0, 0, 0] = broken
    node = known.record(clean, velocity, 0.8).nodes[0]
    assert torch.equal(node.velocity[0], known.nodes[0].velocity[0])
    assert torch.equal(node.clean[0], known.nodes[0].clean[0])
    assert torch.equal(node.velocity[1:], velocity[1:]) and torch.equal(node.clean[1:], clean[1:])
    (first,) = Predictions(layout).record(clean, velocity, 0.8).nodes
    assert not first.velocity[0].any() and not first.clean[0].any(), "zeros, before there are any"
    assert torch.equal(first.velocity[1:], velocity[1:]) and torch.equal(first.clean[1:], clean[1:])


def test_nodes_of_another_kind_are_not_on_the_line() -> None:
    layout = TokenLayout.fine(1, 2, 2, 1)
    known = Predictions(layout)
    for level, guided in ((0.9, True), (0.8, True), (0.7, False)):
        value = torch.full((1, 1, 4, 4), level)
        known = known.record(value, value, level, [guided])
    assert known.levels(0) == [0.7]
    assert (forecast(known, layout, 0.5, "clean") == 0.7).all()


# ---- runs without a pipeline

GRID, PATCH = (4, 8), 1
Velocity = Callable[[Tensor, float], Tensor]
PLANS = {
    "plain": RALU(steps=(7,), ends=(1.0,)),
    "two stages": RALU(steps=(3, 6), ends=(0.3, 1.0)),
    "regions": RALU(steps=(2, 3, 5), ends=(0.2, 0.5, 1.0), ratio=0.4, regions="even"),
    "four stages": RALU(steps=(2, 1, 3, 4), ends=(0.2, 0.4, 0.6, 1.0), ratio=(0.25, 0.5), regions="even"),
}


def run_of(plan: RALU, temporal: Forecast | None, solver: Multistep | None) -> Run:
    stages = plan.stages(9, 2.0)
    same: Any = lambda image, *_: image  # noqa: E731
    geometry = Geometry(same, same, same, PATCH, 8 * PATCH)
    prediction = predictions_of(temporal, solver, len(stages))
    return Run(plan, stages, geometry, Autoencoder(), Report("none", "", ""), prediction=prediction)


def sampled(plan: RALU, temporal: Forecast | None, solver: Multistep | None, velocity: Velocity, seed: int) -> Tensor:
    """The end of a run on a model that gives `velocity(canvas, sigma)`."""
    run, canvas = run_of(plan, temporal, solver), None
    shape = (2, CHANNELS, GRID[0] * PATCH, GRID[1] * PATCH)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    run.begin(GRID, 2, latents.device, lambda: latents)
    while not run.finished:
        assert run.canvas.value is not None
        canvas = run.canvas.value
        run.tally.count_call(Uncounted(), {}, 2, run)
        latents = run.advance(velocity(canvas, run.sigma), latents, lambda: pytest.fail("stages are not stock's"))
    return latents


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PLANS)), seeds,
    st.builds(
        Forecast, st.integers(1, 5), quantity=st.sampled_from(["velocity", "clean", "auto"]), order=st.integers(0, 2),
        transition=st.sampled_from(["keep", "trend", "reset"]), ramp=st.booleans(),
    ),
    st.sampled_from([None, Multistep(1), Multistep(2), Multistep(3), Multistep(2, corrector=False)]),
)  # fmt: skip
def test_a_clean_estimate_that_stays_gives_the_exact_end(
    name: str, seed: int, policy: Forecast, solver: Multistep | None
) -> None:
    """(f) Over any number of transitions, by every forecast and solver: the model always names the same picture."""
    picture = torch.randn(2, CHANNELS, 1, 1, generator=torch.Generator().manual_seed(seed + 1))
    end = sampled(PLANS[name], policy, solver, lambda x, sigma: (x - picture) / sigma, seed)
    torch.testing.assert_close(end, picture.expand_as(end), atol=2e-4, rtol=2e-4)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 5), st.sampled_from([0.0, 0.6]), st.booleans())
def test_a_velocity_that_is_linear_in_sigma_needs_no_more_than_two_steps(
    seed: int, interval: int, gap: float, ramp: bool
) -> None:
    """(e) As exact as if every step were computed, however long the intervals."""
    generator = torch.Generator().manual_seed(seed + 1)
    start, slope = torch.randn(2, 2, CHANNELS, *GRID, generator=generator)
    policy = Forecast(interval, quantity="velocity", order=1, gap=gap, ramp=ramp, first=2)
    plan = RALU(steps=(11,), ends=(1.0,), shifts=(1.0,))  # even steps, so that nodes stand far enough apart
    found, full = (
        sampled(plan, temporal, None, lambda x, sigma: start + sigma * slope, seed)
        for temporal in (policy if gap == 0 else Forecast(2, quantity="velocity", first=2), None)
    )
    torch.testing.assert_close(found, full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("transition", ["keep", "trend", "reset"])
def test_with_everything_computed_a_plan_is_the_plan_alone(plan: str, transition: str) -> None:
    def velocity(x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(x) + sigma

    alone = sampled(PLANS[plan], None, None, velocity, 3)
    assert torch.equal(sampled(PLANS[plan], Forecast(1, transition=transition), None, velocity, 3), alone)


def test_a_trend_goes_on_from_what_the_first_step_behind_a_transition_computes() -> None:
    """The coarse slope with the fine value: exact if the fine prediction differs from the coarse by a constant."""
    layout = TokenLayout.coarse(2, 2, 2, 1)
    known, new = history(layout, [0.9, 0.8]), TokenLayout.fine(2, 2, 2, 1)
    run = predictions_of(Forecast(9, transition="trend", quantity="clean"), None, 2)
    assert run is not None
    run.known = known
    run.transfer(new, lambda noise: noise, torch.zeros(2, 16, dtype=torch.bool))
    fine = forecast(known, layout, 0.95, "clean") + 3
    run.take(fine, torch.zeros_like(fine), 0.95, new, True)
    expected = forecast(known, layout, 0.9, "clean") + 3
    torch.testing.assert_close(forecast(run.known, new, 0.9, "clean"), expected, atol=1e-4, rtol=1e-4)


# ---- solvers


def theirs(kind: str, order: int, steps: int) -> Any:
    """diffusers' own solver in flow time."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": order}
    scheduler = diffusers.UniPCMultistepScheduler(**flow) if kind == "unipc" else (
        diffusers.DPMSolverMultistepScheduler(**flow)
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(("kind", "order"), [("unipc", 1), ("unipc", 2), ("unipc", 3), ("dpm", 1), ("dpm", 2)])
@pytest.mark.parametrize("steps", [3, 5, 9])
def test_the_multistep_solver_is_that_of_diffusers(kind: str, order: int, steps: int) -> None:
    """With its lower orders at both ends of the run."""
    scheduler = theirs(kind, order, steps)
    levels = scheduler.sigmas.tolist()
    noise = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))

    def velocity(x: Tensor, sigma: float) -> Tensor:
        return 0.7 * torch.tanh(1.3 * x + sigma) - 0.2 * x

    expected = noise
    for level, time in zip(levels, scheduler.timesteps, strict=False):
        expected = scheduler.step(velocity(expected, level), time, expected).prev_sample
    layout = TokenLayout.fine(1, 4, 4, 1)
    run = predictions_of(None, Multistep(order, corrector=kind == "unipc"), 1)
    assert run is not None
    x = noise
    for number in range(steps):
        x, _ = run.take(x, velocity(x, levels[number]), levels[number], layout, number > 0)
        x = run.leap(x, levels[number + 1], steps - number, layout)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


def test_a_canvas_that_others_changed_is_not_mended() -> None:
    """What the step before led to is no more what it stands at."""
    layout = TokenLayout.fine(1, 2, 2, 1)
    for ours in (True, False):
        run = predictions_of(None, Multistep(2), 1)
        assert run is not None
        x, _ = run.take(canvas(layout, 1), canvas(layout, 2), 0.9, layout, False)
        x = run.leap(x, 0.7, 3, layout)
        mended, _ = run.take(x, canvas(layout, 3), 0.7, layout, ours)
        assert torch.equal(mended, x) == (not ours)


@given(st.lists(st.integers(20, 980), min_size=2, max_size=4, unique=True), st.floats(0.0, 1.0))
def test_solvers_integrate_a_constant_exactly(permille: list[int], at: float) -> None:
    """(f) The weights of what stays, and of noise, are those of the straight path, whatever the older levels."""
    levels = [level / 1000 for level in permille]  # apart, as those that are read are
    to = at * levels[0] * 0.9
    for a, w in (predictor(levels, to), corrector(levels, to)):
        # x = (1 - s) D + s n with D = 1, n = 0 and the other way round
        assert math.isclose(a * (1 - levels[0]) + sum(w), 1 - to, abs_tol=1e-6 * (1 + sum(map(abs, w))))
        assert math.isclose(a * levels[0], to, abs_tol=2e-9)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        (None, None), ("euler", None), ("multistep", Multistep(2)), ("multistep:3", Multistep(3)),
        ("dpm", Multistep(2, corrector=False)), (Multistep(1), Multistep(1)),
    ],
)  # fmt: skip
def test_solvers_have_names(spec: Any, meant: Multistep | None) -> None:
    assert resolve_solver(spec) == meant


def test_a_multistep_solver_mends_its_steps_and_the_last_one_ends_at_the_newest_estimate() -> None:
    assert Multistep().corrector and Multistep().order == 2
    assert predictor([0.5, 0.7, 0.9], 0.0) == (0.0, (1.0, 0.0, 0.0))


@pytest.mark.parametrize("spec", ["", "heun", "multistep:4", "multistep:x", "multistep:", "euler:1"])
def test_unknown_solvers_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="accepted: None, 'euler', 'multistep'"):
        resolve_solver(spec)


def test_what_is_no_solver_is_refused() -> None:
    with pytest.raises(TypeError, match="got 2"):
        resolve_solver(2)  # type: ignore[arg-type]
    for order in (0, 4, True, 2.5):
        with pytest.raises(ValueError, match="order must be one of"):
            Multistep(order)  # type: ignore[arg-type]


# ---- the controller


def test_the_pace_follows_the_error() -> None:
    begun = Pace().after(0.05, 0.1, 0.05)
    assert 0.08 < begun.reach < 0.1, "at the tolerance it stays, with some care"
    assert begun.after(0.005, 0.1, 0.05).reach > 0.15
    assert begun.after(0.5, 0.1, 0.05).reach < 0.05
    assert begun.after(0.0, 0.1, 0.05).reach == pytest.approx(0.4), "no error: as far as one step may"
    for broken in (math.nan, math.inf):
        assert begun.after(broken, 0.1, 0.05).reach == pytest.approx(0.03)
    assert Pace().gap(0.9, [0.8, 0.7], 4) == 1, "before anything is known"
    pace = Pace(0.25)
    assert pace.gap(0.9, [0.8, 0.7, 0.6, 0.5], 4) == 2 and pace.gap(0.9, [0.85, 0.8, 0.75, 0.7], 3) == 3
    assert pace.gap(0.9, [0.1], 4) == 1 and pace.gap(0.1, [], 4) == 1


def test_each_sample_has_a_pace_of_its_own() -> None:
    """One whose forecasts are good is computed more seldom, whatever its neighbour's are; nothing is read too early."""
    verifier, levels = Verifier(0.1, 4, 1), [1 - place / 20 for place in range(20)]
    computed: dict[int, list[int]] = {0: [], 1: []}
    for place, sigma in enumerate(levels):
        skipped = verifier.skip(place, [place > 0] * 2, lambda: pytest.fail("it looks at nothing"))
        for sample in {0, 1} - skipped:
            computed[sample].append(place)
            error = math.nan if len(computed[sample]) < 3 else (0.001, 0.2)[sample]
            verifier.learn(sample, place, sigma, error, levels[place + 1 :])
    assert computed[0][:3] == [0, 1, 2] and max(b - a for a, b in pairwise(computed[0])) == 4
    assert computed[1] == list(range(20))
    verifier.pick([1])
    assert verifier.skip(20, [True], lambda: pytest.fail("it looks at nothing")) == set()


# ---- settings


def test_which_steps_a_plan_computes() -> None:
    def places(policy: Forecast, *stages: int) -> list[int]:
        return [place for place, computed in enumerate(policy.computed(stages)) if computed]

    assert places(Forecast(3), 14) == [0, 2, 5, 8, 11]
    assert places(Forecast(3, ramp=False), 8) == [0, 3, 6]
    assert places(Forecast(3), 1, 7) == [0, 1, 4, 7], "what is kept needs no ramp"
    assert places(Forecast(3, transition="reset"), 1, 7) == [0, 1, 3, 6]
    assert places(Forecast((2, 4)), 4, 8) == [0, 2, 4, 8]
    assert places(Forecast(4, first=2, last=2), 8) == [0, 1, 2, 5, 6, 7]
    assert places(Forecast(1), 2, 2) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval must be an integer of at least 1, got 0"),
        ({"interval": -2}, "got -2"),
        ({"interval": math.nan}, "got nan"),
        ({"interval": ()}, "one for each stage"),
        ({"interval": (3, 0)}, "got 0"),
        ({"order": 2, "depth": 2}, "order 2 needs depth 3 or more, got depth 2"),
        ({"order": 3}, "order must be an integer from 0 to 2, got 3"),
        ({"depth": 0}, "depth must be"),
        ({"tolerance": 0}, "tolerance must be above 0"),
        ({"tolerance": -1.0}, "got -1.0"),
        ({"tolerance": math.nan}, "got nan"),
        ({"quantity": "noise"}, "quantity must be one of 'velocity', 'clean', 'auto'"),
        ({"transition": "inherit"}, "transition must be one of 'keep'"),
        ({"gap": -0.1}, "gap must be"),
        ({"damping": 1.5}, "damping must be"),
        ({"max_gap": 0}, "max_gap must be"),
        ({"first": 0}, "first must be"),
        ({"ramp": 1}, "ramp must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forecast(**settings)


def test_intervals_for_another_number_of_stages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"interval=\(3, 2\) is for 2 stages, but the plan has 3"):
        predictions_of(Forecast((3, 2)), None, 3)
