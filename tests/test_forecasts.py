"""Forecasts and solvers in pipelines: the model is not called, and every law that the library has for reuse holds."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from ralu_cache import RALU, Adaptive, Forecast, Multistep, SeaCache, TaylorSeer, TeaCache, ToCa, accelerate
from ralu_cache.engine.forecasted import Forecasted
from ralu_cache.engine.guided import Pair
from tests.pairwise import pairwise
from tests.surroundings import (
    CLOSE,
    FAMILIES,
    LATER,
    PLAN,
    STEPS,
    Family,
    at,
    each_family,
    looking,
    one_thread,  # noqa: F401
    recorded,
    stock,
)

CAREFUL = Forecast(tolerance=0.1)
PREDICTED = {
    "teacache": TeaCache(0.4, "identity", reuse="prediction"),
    "seacache": SeaCache(0.8, order=1, reuse="prediction"),
    "inherited": SeaCache(0.8, order=1, transition="inherit", reuse="prediction", compute_stage_end=False),
    "taylorseer": TaylorSeer(3, reuse="prediction"),
    "adaptive": Adaptive(3, reuse="prediction"),
}
DECIDING = {"tolerance": CAREFUL, **PREDICTED}
BOTH = pytest.mark.parametrize("stages", [False, True], ids=["alone", "stages"])


def levels(calls: list[dict[str, Any]]) -> list[float]:
    """The noise levels at which the model was called."""
    times = [float(call["timestep"].flatten()[0]) for call in calls]
    return [time if time <= 1 else time / 1000 for time in times]


def options(temporal: Any, stages: bool, **others: Any) -> dict[str, Any]:
    return {"temporal": temporal, "spatial": PLAN if stages else None, **others}


def halved(family: Family) -> dict[str, Any]:
    """Arguments of a guided call in half precision."""
    given = family.arguments(guided=True)
    return {
        name: value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("temporal", [Forecast(3), Forecast(2, ramp=False), PREDICTED["seacache"]], ids=str)
@pytest.mark.parametrize("name", ["sd3", "ltx"])
def test_another_scale_of_guidance_begins_anew(name: str, temporal: Any) -> None:
    """From the same latents on, whatever the scale was before a callback changed it."""
    family = (FAMILIES | LATER)[name]
    pipe, noise = family.make(), torch.Generator().manual_seed(7)
    fixed: list[Tensor] = []

    def change(pipe: Any, tensors: dict[str, Any]) -> None:
        fixed.extend([] if fixed else [torch.randn(tensors["latents"].shape, generator=noise)])
        tensors["latents"], pipe._guidance_scale = fixed[0].clone(), 1.7

    with accelerate(pipe, temporal=temporal):
        found = [
            family.run(pipe, guided=True, guidance_scale=scale, callback_on_step_end=at(4, change))
            for scale in (2.5, 8.0)
        ]
    assert torch.equal(*found)


@each_family
@BOTH
def test_the_model_is_called_at_computed_steps_alone(family: Family, stages: bool) -> None:
    """At their levels, for each guidance branch; the report, the bar and the callback know of the others."""
    pipe, policy, told = family.make(), Forecast(3, ramp=False), []
    callback = looking(lambda: told.append(None))
    with recorded(pipe.transformer) as calls, accelerate(pipe, **options(policy, stages)) as handle:
        family.run(pipe, guided=True, callback_on_step_end=callback)
    report = handle.report
    assert report is not None and report.completed
    counts = [stage.steps for stage in report.stages]
    shown = [step for step, computed in zip(report.steps, policy.computed(counts), strict=True) if computed]
    each = len(calls) // len(shown)
    assert each in (1, 2) and levels(calls)[::each] == pytest.approx([step.sigma for step in shown], abs=1e-3)
    assert len(report.steps) == STEPS and len(told) == STEPS
    assert [step.calls for step in report.steps] == [each * (step in shown) for step in report.steps]
    assert sum(step.forecast > 0 for step in report.steps) == STEPS - len(shown)
    assert all(step.flops == 0 < step.saved_flops for step in report.steps if step not in shown)
    assert report.reused == report.forecast if hasattr(report, "reused") else True
    assert report.peak_cached_bytes > 0 and "by temporal" in str(report)


COMPUTING = {
    "interval": Forecast(1), "tolerance": Forecast(tolerance=1e-12),
    "teacache": TeaCache(0.0, "identity", reuse="prediction"),
    "inherit": SeaCache(0.0, reuse="prediction", transition="inherit"),
}  # fmt: skip


@pairwise(family=FAMILIES, policy=COMPUTING, stages=[False, True])
def test_with_everything_computed_the_run_is_the_one_without_a_policy(family: str, policy: str, stages: bool) -> None:
    run, pipe = FAMILIES[family].run, FAMILIES[family].make()
    expected = stock(family, (0,), True)
    if stages:
        with accelerate(pipe, spatial=PLAN):
            expected = run(pipe, guided=True)
    with accelerate(pipe, **options(COMPUTING[policy], stages)):
        assert torch.equal(run(pipe, guided=True), expected)


@pytest.mark.parametrize(
    ("family", "kind", "stages"),
    [
        (family, kind, (number // 2 + place // 2) % 2 == 1)
        for number, family in enumerate(FAMILIES)
        for place, kind in enumerate(["interval", "solver", *DECIDING])
        if (number + place) % 2 == 0
    ],  # of each kind one family on stages and one without, and four kinds a family
)
def test_a_picture_does_not_depend_on_its_batch(family: str, kind: str, stages: bool) -> None:
    """Nor do the steps at which it is computed, where each sample decides. On stages it is unguided."""
    policy = Forecast(3) if kind == "interval" else DECIDING.get(kind)
    solver = "multistep" if kind in ("solver", "tolerance") else None
    run, pipe = FAMILIES[family].run, FAMILIES[family].make()
    with accelerate(pipe, **options(policy, stages, solver=solver)) as handle:
        together = run(pipe, (0, 1), guided=not stages)
        alone = run(pipe, (1,), guided=not stages)
        assert handle.report is not None
        assert kind == "solver" or any(step.forecast for step in handle.report.steps) or kind == "tolerance"
    torch.testing.assert_close(together[1:2], alone, atol=10 * CLOSE, rtol=10 * CLOSE)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (family, kind)
        for number, family in enumerate(FAMILIES.values())
        for place, kind in enumerate(DECIDING)
        if (number + place) % 2 == 0
    ],
    ids=str,
)
def test_only_those_that_need_it_are_computed(family: Family, kind: str) -> None:
    """A batch of pictures that decide for themselves costs what each of them alone does."""
    policy = DECIDING[kind]
    if kind == "tolerance":
        policy = Forecast(tolerance=1e3)
    pipe = family.make()
    with accelerate(pipe, temporal=policy) as handle:
        cost = []
        for samples in ((0, 1), (0,), (1,)):
            with recorded(pipe.transformer) as calls:
                family.run(pipe, samples, guided=True)
            rows = sum(len(call["hidden_states"]) for call in calls)
            assert handle.report is not None
            assert rows == sum(step.samples for step in handle.report.steps)
            assert sum(step.asked for step in handle.report.steps) == 2 * len(samples) * STEPS
            cost.append(rows)
    assert cost[0] == cost[1] + cost[2]
    assert cost[0] < 4 * STEPS, "and something was saved"


@each_family
def test_guided_and_not_are_not_mixed(family: Family) -> None:
    """The steps at which guidance ends and begins are computed; pictures agree in both ways of deciding."""
    pipe = family.make()
    for policy in (Forecast(3), Forecast(tolerance=1e3), PREDICTED["taylorseer"]):
        with accelerate(pipe, temporal=policy, guidance="early:0.3") as handle:
            picture = family.run(pipe, (0, 1), guided=True)
            report = handle.report
            assert report is not None and report.completed
            first = next(step for step in report.steps if step.sigma < 0.7 + 1e-6)
            assert first.forecast == 0 and first.guided is False
            assert any(step.forecast for step in report.steps)
            torch.testing.assert_close(picture[:1], family.run(pipe, guided=True), atol=10 * CLOSE, rtol=10 * CLOSE)


@each_family
@pytest.mark.parametrize("temporal", ["forecast:3", "forecast:tolerance=0.5", "seacache:0.8,reuse=prediction"])
def test_half_precision_and_inference_mode(family: Family, temporal: str) -> None:
    pipe = family.make()
    pipe.transformer.to(torch.bfloat16)
    with accelerate(pipe, temporal=temporal, spatial=PLAN), torch.inference_mode():
        picture = pipe(**halved(family))[0]
    assert picture.isfinite().all() and picture.dtype == torch.bfloat16


@pytest.mark.parametrize("temporal", [Forecast(tolerance=1e-12), SeaCache(0.0, reuse="prediction"), Forecast(1)])
def test_half_precision_with_everything_computed_is_stock(temporal: Any) -> None:
    """Bit for bit, for stock's own steps are taken, with their rounding."""
    family = FAMILIES["flux"]
    pipe = family.make()
    pipe.transformer.to(torch.bfloat16)
    expected = pipe(**halved(family))[0]
    assert expected.dtype == torch.bfloat16
    with accelerate(pipe, temporal=temporal):
        assert torch.equal(pipe(**halved(family))[0], expected)


def test_a_callback_that_changes_the_latents_is_gone_on_from() -> None:
    """What it gives is where the run goes on; nothing mends a step that led elsewhere."""
    family = FAMILIES["flux"]
    pipe = family.make()

    def doubled(given: Any, number: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": 2 * tensors["latents"]} if number == 4 else tensors

    for settings in ({"temporal": "forecast:3"}, {"solver": "multistep"}, {"temporal": CAREFUL, "solver": "dpm"}):
        with accelerate(pipe, **settings):
            alone = family.run(pipe)
            changed = family.run(pipe, callback_on_step_end=doubled)
            assert changed.isfinite().all() and not torch.allclose(alone, changed)
            torch.testing.assert_close(family.run(pipe), alone)


def test_a_prediction_that_is_not_finite_breaks_its_own_sample_alone() -> None:
    """And with a callback that mends the latents the run goes on."""
    family = FAMILIES["flux"]
    pipe, calls = family.make(), []

    def broken(module: Any, args: Any, output: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            output[0][0] = torch.nan
        return output

    with accelerate(pipe, temporal="forecast:2"):
        whole = family.run(pipe, (0, 1))
        hook = pipe.transformer.register_forward_hook(broken)
        found = family.run(pipe, (0, 1))
        hook.remove()
    assert not found[0].isfinite().any()
    assert torch.equal(found[1], whole[1])


def test_strength_enters_at_the_level_of_the_stock_schedule() -> None:
    from tests.pipelines import make_pipeline, pictures, random_image

    pipe = make_pipeline(diffusers.FluxImg2ImgPipeline)
    given = pictures((0,)) | {"image": random_image(1), "num_inference_steps": 10, "strength": 0.6}
    with recorded(pipe.transformer) as calls:
        pipe(**given)
    expected = levels(calls)
    for temporal, shown in ((Forecast(1), range(6)), (Forecast(2, ramp=False), range(0, 6, 2))):
        with recorded(pipe.transformer) as calls, accelerate(pipe, temporal=temporal):
            pipe(**given)
        assert levels(calls) == pytest.approx([expected[place] for place in shown])


def test_the_callers_own_levels_are_those_that_are_gone_through() -> None:
    family = FAMILIES["flux"]
    pipe, own = family.make(), [1.0, 0.8, 0.55, 0.3, 0.2]
    with recorded(pipe.transformer) as calls, accelerate(pipe, temporal=Forecast(2, ramp=False)) as handle:
        family.run(pipe, sigmas=own, num_inference_steps=5)
    with recorded(pipe.transformer) as plain:
        family.run(pipe, sigmas=own, num_inference_steps=5)
    assert levels(calls) == pytest.approx(levels(plain)[::2])
    assert handle.report is not None and len(handle.report.steps) == 5
    with accelerate(pipe, temporal="forecast:2", spatial=PLAN) as handle:
        family.run(pipe, sigmas=own, num_inference_steps=5)
        assert handle.report is not None and handle.report.completed


# ---- what changes in mid-run

CHANGING = {
    "interval": {"temporal": Forecast(2, ramp=False)},
    "tolerance": {"temporal": Forecast(tolerance=1e3)},
    "signal": {"temporal": PREDICTED["inherited"]},
    "solver": {"solver": "multistep"},
    "both": {"temporal": "forecast:2", "solver": "multistep:3"},
}
NAMES = ["latents", "prompt_embeds"]


@pairwise(kind=CHANGING, stages=["alone", "stages"], name=FAMILIES)
def test_a_prompt_that_a_callback_exchanges_begins_anew(kind: str, stages: str, name: str) -> None:
    """With latents exchanged as well, the rest of the run depends on nothing that was before."""
    family = FAMILIES[name]
    pipe = family.make()
    fresh = torch.randn(stock(family.name).shape, generator=torch.Generator().manual_seed(7))
    second = family.arguments((1,))["prompt_embeds"]

    def exchange(given: Any, number: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": fresh.clone(), "prompt_embeds": -second} if number == 3 else tensors

    found = []
    with accelerate(pipe, spatial=PLAN if stages == "stages" else None, **CHANGING[kind]):
        for scale in (1.0, -3.0):
            given = family.arguments()
            given["prompt_embeds"] = scale * given["prompt_embeds"]
            found.append(pipe(**given, callback_on_step_end=exchange, callback_on_step_end_tensor_inputs=NAMES)[0])
    torch.testing.assert_close(*found, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("kind", CHANGING)
def test_guidance_that_a_callback_ends_begins_anew(kind: str) -> None:
    """What is guided without weight is the same picture, but made of two predictions: the line begins anew."""
    family = FAMILIES["sd3"]
    pipe = family.make()

    def cut(given: Any, number: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if number != 3:
            return tensors
        given._guidance_scale = 0.0
        return {"latents": tensors["latents"], "prompt_embeds": tensors["prompt_embeds"][-1:],
                "pooled_prompt_embeds": tensors["pooled_prompt_embeds"][-1:]}  # fmt: skip

    with accelerate(pipe, **CHANGING[kind]) as handle:
        pipe(**family.arguments(guided=True), callback_on_step_end=cut,
             callback_on_step_end_tensor_inputs=[*NAMES, "pooled_prompt_embeds"])  # fmt: skip
    report = handle.report
    assert report is not None and report.completed
    after = next(step for step in report.steps if step.index > 3 and step.samples == 1)
    assert all(step.samples == 2 for step in report.steps if step.index < after.index and step.calls)
    assert after.forecast == 0


@pairwise(name=["sd3", "wan"], kind=CHANGING, stages=[False, True])
def test_a_batch_that_a_callback_shrinks(name: str, kind: str, stages: bool) -> None:
    """What remains is drawn as it would have been alone."""
    family = FAMILIES[name]
    pipe = family.make()

    def shrink(given: Any, number: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: value[1:] for name, value in tensors.items()} if number == 4 else tensors

    names = [*NAMES, "pooled_prompt_embeds"] if name == "sd3" else NAMES
    with accelerate(pipe, spatial=PLAN if stages else None, **CHANGING[kind]):
        alone = family.run(pipe, (1,))
        given = family.arguments((0, 1))
        found = pipe(**given, callback_on_step_end=shrink, callback_on_step_end_tensor_inputs=names)[0]
    torch.testing.assert_close(found, alone, atol=10 * CLOSE, rtol=10 * CLOSE)


# ---- solvers


class _Exact(diffusers.UniPCMultistepScheduler):
    """Shows the model its levels as they are, not rounded to whole time steps."""

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, np.array(sigmas))
        self.timesteps = self.sigmas[:-1] * 1000


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("guided", [False, True])
def test_a_solver_alone_is_the_stock_solver(order: int, guided: bool) -> None:
    """UniPC in flow time, at the same levels, in a whole pipeline."""
    family, sigmas = FAMILIES["sd3"], [1.0, 0.8, 0.7, 0.5, 0.35, 0.15]
    pipe = family.make()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with accelerate(pipe, solver=Multistep(order)) as handle:
        found = family.run(pipe, (0, 1), guided=guided, sigmas=sigmas, num_inference_steps=6)
        assert handle.report is not None and handle.report.completed and not handle.report.notices
    pipe.scheduler = _Exact(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=order
    )
    expected = family.run(pipe, (0, 1), guided=guided, sigmas=sigmas, num_inference_steps=6)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pairwise(
    family=FAMILIES,
    temporal=[None, "forecast:3", "seacache:0.8", "toca:3", "seacache:0.8,reuse=prediction"],
    solver=["multistep", "multistep:3", "dpm"],
    stages=[False, True],
)
def test_solvers_go_with_every_policy(family: str, temporal: str | None, solver: str, stages: bool) -> None:
    run, pipe = FAMILIES[family].run, FAMILIES[family].make()
    with accelerate(pipe, **options(temporal, stages, solver=solver)) as handle:
        picture = run(pipe, guided=stages)
        assert handle.report is not None and handle.report.completed
    assert picture.isfinite().all()
    with accelerate(pipe, **options(temporal, stages)):
        assert not torch.allclose(run(pipe, guided=stages), picture)


def test_euler_is_stock() -> None:
    family = FAMILIES["flux"]
    pipe = family.make()
    with accelerate(pipe, solver="euler") as handle:
        assert torch.equal(family.run(pipe), stock("flux"))
        assert handle.report is None


# ---- what is refused, and what is told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temporal": "forecast:0"}, "interval must be an integer of at least 1, got 0"),
        ({"temporal": "forecast:nan"}, "interval must be"),
        ({"temporal": "forecast:-3"}, "got -3"),
        ({"temporal": "forecast:tolerance=0"}, "tolerance must be above 0"),
        ({"temporal": "toca:reuse=prediction"}, "reuse='prediction' needs a policy that keeps the residual"),
        ({"temporal": "adaptive:2,ratio=0.3,reuse=prediction"}, "keeps 'rows'"),
        ({"temporal": "teacache:0.4,reuse=everything"}, "reuse must be one of 'residual', 'prediction'"),
        ({"solver": "heun"}, "unknown solver 'heun'; accepted"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    pipe = FAMILIES["flux"].make()
    with pytest.raises(ValueError, match=message):
        accelerate(pipe, **settings)
    assert type(pipe) is diffusers.FluxPipeline


def test_a_list_for_another_number_of_stages_is_refused_before_the_call_changes_anything() -> None:
    family = FAMILIES["flux"]
    pipe = family.make()
    with accelerate(pipe, temporal="forecast:3/2", spatial=PLAN) as handle:
        with pytest.raises(ValueError, match=r"interval=\(3, 2\) is for 2 stages, but the plan has 3"):
            family.run(pipe)
        assert handle.report is None
    with accelerate(pipe, temporal="forecast:3/2/2", spatial=PLAN):
        family.run(pipe)


def test_skip_layer_guidance_is_refused_where_steps_are_left_out() -> None:
    """Its window counts in steps."""
    family = FAMILIES["sd3"]
    pipe = family.make()
    given = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}
    for temporal in ("forecast:3", CAREFUL):
        with accelerate(pipe, temporal=temporal), pytest.raises(ValueError, match="skip_guidance_layers"):
            family.run(pipe, guided=True, **given)
    with accelerate(pipe, solver="multistep"):
        family.run(pipe, guided=True, **given)


def test_a_plan_by_name_with_forecasts_and_a_solver(caplog: pytest.LogCaptureFixture) -> None:
    family = FAMILIES["flux"]
    pipe = family.make()
    with caplog.at_level(logging.WARNING), accelerate(
        pipe, spatial=RALU(steps=(2, 4), ends=(0.4, 1.0)), temporal="forecast:1/2", solver="multistep"
    ) as handle:  # fmt: skip
        family.run(pipe)
    report = handle.report
    assert report is not None and [stage.calls for stage in report.stages] == [2, 2]
    assert report.temporal == "forecast:1/2" and report.solver == "multistep"
    assert "solver multistep" in str(report)


def test_policies_that_were_refused_before_are_still(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="keeps 'layers"):
        ToCa(3, reuse="prediction")


def test_what_stands_in_is_the_samples_own() -> None:
    """Rows that are not computed are filled with their own sample's forecast, in both halves of a stacked call."""
    adapter: Any = SimpleNamespace(from_image=lambda image, like: image)
    run: Any = SimpleNamespace(forecast=lambda: torch.tensor([10.0, 11.0, 12.0]).view(3, 1, 1, 1))
    hidden = torch.zeros(6, 1, 1, 1)
    both = Forecasted.of((0, 1, 2, 0, 1, 2), None, frozenset({1}))
    assert both is not None and both.index == (0, 2, 3, 5) and both.dropped == 2
    found = both.filled(torch.tensor([0.0, 2.0, 3.0, 5.0]).view(4, 1, 1, 1), adapter, run, hidden)
    assert found.flatten().tolist() == [0, 11, 2, 3, 11, 5]
    pair = Pair((0, 3, 4, 5), [True, False, False], 1.0, True)
    half = Forecasted.of((0, 1, 2, 0, 1, 2), pair, frozenset({2}))
    assert half is not None and half.index == (0, 3, 4)
    found = half.filled(torch.tensor([0.0, 3.0, 4.0]).view(3, 1, 1, 1), adapter, run, hidden)
    assert found.flatten().tolist() == [0, 3, 4, 12], "u of the guided, then c of all"
    assert Forecasted.of((0, 1), None, frozenset()) is None
