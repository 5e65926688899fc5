"""Spatial methods: presets, plans and the registry."""

import dataclasses
import math
from itertools import pairwise

import pytest

from ralu_cache import RALU, register_spatial
from ralu_cache.plane import spatial
from ralu_cache.plane.presets import PRESETS
from ralu_cache.plane.schedule import renoised_sigma, solve_nt_dm
from ralu_cache.plane.spatial import resolve_spatial, spatial_names


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_the_published_cost(name: str) -> None:
    plan, published = RALU.preset(name), RALU.paper(name)
    stages = plan.stages(50, 3.0)
    assert tuple(stage.steps for stage in stages) == PRESETS[name].steps == published.steps
    assert [stage.ratio for stage in stages] == [0.0, PRESETS[name].ratio, 1.0]
    assert [stage.kind for stage in stages] == ["coarse", "mixed", "fine"]


@pytest.mark.parametrize("name", PRESETS)
def test_paper_has_the_published_levels(name: str) -> None:
    preset = PRESETS[name]
    shifts, z = solve_nt_dm(preset.steps, preset.ends)
    assert preset.shifts == pytest.approx(shifts, abs=1e-2) and preset.z == pytest.approx(z, abs=1e-2)
    stages = RALU.paper(name).stages(50, 1.0)
    assert [stage.sigmas[-1] for stage in stages] == pytest.approx([1 - e for e in preset.ends], abs=1e-12)


def test_levels_follow_the_models_shift_and_z() -> None:
    first, mixed, fine = RALU(steps=(2, 3, 4), z=2.5).stages(50, 2.0)
    assert first.sigmas[0] == 1.0 and fine.sigmas[-1] == 0.0
    assert mixed.sigmas[0] == pytest.approx(renoised_sigma(first.sigmas[-1], 2.5))
    u = [s / (2.0 - s) for s in fine.sigmas]  # the inverse of sigma = 2 u / (1 + u)
    steps = [a - b for a, b in pairwise(u)]
    assert steps == pytest.approx([steps[0]] * 4)


def test_nt_dm_for_the_models_shift() -> None:
    plan = RALU(steps=(2, 2, 3), shifts="nt-dm", shift="model")
    assert plan.stages(50, 2.0) != plan.stages(50, 4.0)
    assert RALU(steps=(2, 2, 3), shifts="nt-dm").stages(50, 2.0) == RALU(steps=(2, 2, 3), shifts="nt-dm").stages(
        50, 4.0
    )


def test_a_published_plan_needs_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ralu_cache.plane.schedule.solve_nt_dm", lambda *_: pytest.fail("solved"))
    RALU(steps=(5, 6, 7), ends=(0.3, 0.45, 1.0), shifts="nt-dm").stages(50, 3.0)
    for name in PRESETS:
        RALU.preset(name).stages(50, 3.0)
        RALU.paper(name).stages(50, 3.0)


def test_names() -> None:
    assert spatial_names()[0] == "ralu" and set(PRESETS) < set(spatial_names())
    assert resolve_spatial(None, "ralu-4x") is None
    assert resolve_spatial("ralu", "ralu-2x") == RALU.preset("ralu-2x")
    assert resolve_spatial("ralu-7x", "ralu-4x") == RALU.preset("ralu-7x")
    assert RALU() == RALU.preset("ralu-4x")


def test_others_may_register_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spatial, "_METHODS", dict(spatial._METHODS))
    register_spatial("half", lambda: RALU(steps=(4, 4), ends=(0.5, 1.0)))
    method = resolve_spatial("half", "ralu-4x")
    assert method is not None and len(method.stages(50, 3.0)) == 2


def test_configs_are_values() -> None:
    plan = RALU()
    assert hash(plan) == hash(RALU()) and plan == RALU()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.ratio = 0.5  # type: ignore[misc]


def test_four_stages_refine_growing_shares() -> None:
    plan = RALU(steps=(2, 2, 2, 2), ends=(0.1, 0.2, 0.3, 1.0), ratio=(0.2, 0.5))
    assert plan.ratios() == (0.0, 0.2, 0.5, 1.0)
    spread = RALU(steps=(2, 2, 2, 2), ends=(0.1, 0.2, 0.3, 1.0), ratio=0.4).ratios()
    assert spread == (0.0, 0.4, pytest.approx(0.7), 1.0)
    assert all(math.isfinite(s) for stage in plan.stages(50, 3.0) for s in stage.sigmas)
