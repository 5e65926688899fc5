"""Calibration: the fit, the profile that TeaCache reads, and the watched runs that the pairs come from."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache import RALU, TeaCache, accelerate
from ralu_cache.cli import main
from ralu_cache.temporal import resolve_temporal
from ralu_cache.temporal.profile import Curve, Profile, StageFit, read_profile
from ralu_cache.tune.calibration.fit import calibrate, fit, fit_stages
from ralu_cache.tune.calibration.watch import watch_runs
from tests.pipelines import HEIGHT, call_arguments, make_sd3_pipeline, pictures

PLAN = RALU(steps=(3, 3, 3), ends=(0.3, 0.6, 1.0))


def profile_of(*coefficients: tuple[float, ...]) -> Profile:
    return Profile("m", "none", 4, tuple(StageFit(c, (0.1, 0.5), 0.01, None, 9) for c in coefficients))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=5), st.floats(0, 1), st.floats(0.3, 2))
def test_the_fit_recovers_a_polynomial(coefficients: list[float], low: float, width: float) -> None:
    x = np.linspace(low, low + width, 40)
    y = np.polyval(coefficients, x)
    found = fit(np.stack([x, y], 1), degree=len(coefficients) - 1)
    assert found.rms < 1e-6 and found.pairs == 40
    assert np.polyval(found.coefficients, x) == pytest.approx(y, abs=1e-6)
    assert found.range == (x[0], x[-1])


@given(st.integers(1, 40), st.integers(0, 6))
def test_few_pairs_give_a_lower_degree(count: int, degree: int) -> None:
    x = np.linspace(0.1, 0.9, count)
    coefficients = fit(np.stack([x, np.sin(9 * x) / 1000], 1), degree).coefficients
    assert len(coefficients) - 1 == max(0, min(degree, count // 3 - 1))


def test_a_range_too_narrow_for_float32_lowers_the_degree() -> None:
    x = np.linspace(0.5, 0.501, 40)
    pairs = np.stack([x, np.random.default_rng(0).random(40)], 1)
    found = fit(pairs)
    used = found.curve(torch.from_numpy(x).float()).double().numpy()
    assert used == pytest.approx(np.polyval(found.coefficients, x), abs=1e-3)


def test_a_stage_without_pairs_gets_the_fit_of_all() -> None:
    pairs, none = np.array([[0.1, 0.2], [0.2, 0.4]]), np.empty((0, 2))
    assert fit_stages([none, pairs]) == fit_stages([pairs, pairs])
    with pytest.raises(ValueError, match="calibrate with more steps"):
        fit_stages([none, none])
    with pytest.raises(ValueError, match="degree must be an integer of at least 0, got -1"):
        fit_stages([pairs], -1)


@given(st.floats(0, 100, width=32))
def test_outside_its_range_a_curve_keeps_its_ends(change: float) -> None:
    curve = Curve((4.0, -1.0, 0.0), 0.25, 0.5, floor=0.125)
    inside = min(max(change, 0.25), 0.5)
    assert curve(torch.tensor([change])).item() == pytest.approx(max(4 * inside**2 - inside, 0.125), abs=1e-6)
    assert curve(torch.tensor([math.nan])).isnan()


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    profile = replace(profile_of((1.0, 0.5), (2.0,)), arguments={"height": 64}, versions={"torch": "2"})
    profile.save(tmp_path / "a" / "p.json")
    assert read_profile(tmp_path / "a" / "p.json") == profile


def test_each_stage_has_its_polynomial_and_the_last_serves_later_ones(tmp_path: Path) -> None:
    profile_of((1.0, 0.0), (0.0, 3.0)).save(path := tmp_path / "p.json")
    policy = resolve_temporal(f"teacache:0.3,coefficients={path}")
    assert policy == TeaCache(0.3, str(path)) and hash(policy) == hash(TeaCache(0.3, str(path)))
    assert isinstance(policy, TeaCache)
    path.unlink()  # it was read at construction
    assert [policy.increment(torch.tensor([0.25]), stage).item() for stage in range(4)] == [0.25, 3, 3, 3]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": []}', '{"stages": [{"range": [0, 1]}]}'])
def test_other_files_are_refused_by_path(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json is no TeaCache profile; `ralu-cache calibrate"):
        TeaCache(coefficients=str(path))
    with pytest.raises(ValueError, match=r"must be 'auto', 'flux', 'identity', the path .* no file '.*q\.json'"):
        TeaCache(coefficients=str(tmp_path / "q.json"))


def test_the_pairs_are_those_of_the_stock_run(pipe: Any) -> None:
    """The output's change, against the stock transformer's own predictions; the signal's, against the report's."""
    call = call_arguments(2, num_inference_steps=4, true_cfg_scale=1.0)
    traces, _ = watch_runs(pipe, [call])
    assert not pipe.transformer._forward_hooks
    seen: list[torch.Tensor] = []
    hook = pipe.transformer.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    pipe(**{**call, "generator": call_arguments(2)["generator"]})
    hook.remove()
    with accelerate(pipe, temporal=TeaCache(0.0)) as handle:
        pipe(**{**call, "generator": call_arguments(2)["generator"]})
    assert handle.report is not None and len(traces) == 2
    for sample, trace in enumerate(traces):
        wanted = [(b - a)[sample].abs().mean() / a[sample].abs().mean() for a, b in pairwise(seen)]
        assert math.isnan(trace.output[0]) and trace.output[1:] == pytest.approx([float(w) for w in wanted], rel=1e-4)
        distances = [step.branches[0].distance[sample] for step in handle.report.steps]
        assert trace.signal == pytest.approx(distances, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_threshold_zero_with_a_profile_is_the_uncached_run(family: str, pipe: Any, tmp_path: Path) -> None:
    if family == "sd3":
        pipe, call = make_sd3_pipeline(), {"guidance_scale": 3.0}
    else:
        call = {"true_cfg_scale": 2.5}
    profile = calibrate(pipe, [pictures([0], **call)], PLAN, model="tiny")
    assert [stage.pairs for stage in profile.stages] == [4, 4, 4] and profile.steps == 9
    assert profile.arguments["height"] == HEIGHT and profile.model == "tiny"
    profile.save(path := tmp_path / "p.json")
    results = []
    for temporal in (None, TeaCache(0.0, str(path)), TeaCache(1e6, str(path))):
        with accelerate(pipe, PLAN, temporal) as handle:
            results.append(pipe(**pictures([1], **call)).images)
            assert handle.report is not None
            reused = sum(stage.reused for stage in handle.report.stages)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert reused == 2 * (1 + 1 + 1)  # two branches or copies; a stage's first and last step are computed


def test_no_calls_and_one_step_are_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="give at least one prompt"):
        calibrate(pipe, [])
    with pytest.raises(ValueError, match="calibrate with more steps"):
        calibrate(pipe, [pictures([0], num_inference_steps=1)])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle on a white background\n")
    out, plot = tmp_path / "p.json", tmp_path / "p.png"
    arguments = ["calibrate", "--prompts", str(tmp_path / "prompts.txt"), "--height", "64", "--width", "64"]
    assert main([*arguments, "--steps", "5", "--out", str(out), "--plot", str(plot)]) == 0
    (stage,) = read_profile(out).stages
    assert stage.pairs == 2 * 4 and plot.stat().st_size > 5000
    assert "stage 1: 8 pairs" in capsys.readouterr().out
    assert main([*arguments, "--steps", "5", "--degree", "-1", "--out", str(out)]) == 2
    assert "degree must be an integer of at least 0, got -1" in capsys.readouterr().err
