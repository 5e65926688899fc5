"""What a caller says as a share of the run, or counts in steps, means the noise levels of the stock schedule."""

from __future__ import annotations

from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from diffusers.callbacks import SD3CFGCutoffCallback
from torch import Tensor

from ralu_cache import RALU, Forecast, Report, TeaCache, accelerate
from ralu_cache.engine.levels import SHOWS, on_fine_tokens
from ralu_cache.engine.levels import entering as entered
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.plane.spatial import Stage
from tests import surroundings
from tests.pipelines import make_pipeline, random_image
from tests.pipelines_cogview4 import cogview4_pictures, make_cogview4_pipeline
from tests.surroundings import (
    CLOSE,
    CONTROLNETS,
    ENTERING,
    FAMILIES,
    FORECAST,
    HEIGHT,
    OTHER_HALF,
    PLAN,
    POLICIES,
    STAGED,
    STEPS,
    WIDTH,
    Family,
    Setting,
    accepted,
    check_accelerated,
    draw,
    each_family,
    entering,
    fast,
    recorded,
    served,
)

one_thread = surroundings.one_thread

NEVER = TeaCache(threshold=0.0)
PLANS = {"alike": PLAN, "fewer": RALU(steps=(2, 2, 2)), "more": RALU(steps=(5, 6, 7)), "late": RALU(split=(2, 1, 1))}
LATE = RALU(steps=(8, 2), ends=(0.65, 1.0), shifts=(3.3, 1.4), z=2.2)
Seen = list[tuple[int, float, int]]


def levels(calls: list[dict[str, Any]]) -> list[float]:
    """The time steps of the denoiser's calls, from 1 to 0."""
    scale = 1000.0 if max(float(call["timestep"].flatten()[0]) for call in calls) > 2 else 1.0
    return [float(call["timestep"].flatten()[0]) / scale for call in calls]


# ---- strength


@pytest.mark.parametrize("strength", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("kind", ENTERING)
def test_a_staged_plan_enters_where_stock_enters(kind: str, strength: float) -> None:
    pipe = ENTERING[kind][1]()
    given = entering(kind, pipe, strength)
    with recorded(pipe.transformer) as calls:
        stock = draw(pipe, given)
    first, begins = calls[0]["hidden_states"], levels(calls)
    policy = None if (list(ENTERING).index(kind) + round(3 * strength)) % 2 else POLICIES["taylorseer"]
    with accelerate(pipe, spatial=PLAN, temporal=policy) as handle, recorded(pipe.transformer) as calls:
        found = draw(pipe, given)
    assert handle.report.completed and handle.report.steps[-1].sigma_next == 0
    assert handle.report.steps[0].sigma == pytest.approx(begins[0], abs=CLOSE)
    assert levels(calls)[0] == pytest.approx(begins[0], abs=CLOSE)
    if handle.report.stages[0].kind == "fine":
        torch.testing.assert_close(calls[0]["hidden_states"], first, atol=CLOSE, rtol=CLOSE)
    else:
        assert calls[0]["hidden_states"].shape != first.shape
    if "inpaint" in kind:  # what is masked off stays the given picture's
        torch.testing.assert_close(kept(found), kept(stock), atol=CLOSE, rtol=CLOSE)
    if strength == 0.6:
        assert torch.equal(draw(pipe, given), stock)


def kept(latents: Tensor) -> Tensor:
    """The half that inpainting leaves alone."""
    if latents.ndim == 3:
        latents = latents.unflatten(1, (HEIGHT // 4, WIDTH // 4)).movedim(3, 1)
    return latents[..., : latents.shape[-1] // 2]


@pytest.mark.parametrize("kind", ["flux img2img", "sd3 img2img", "qwen img2img"])
def test_little_strength_runs_on_fine_tokens_and_much_begins_coarse(kind: str) -> None:
    pipe = ENTERING[kind][1]()
    kinds = []
    with accelerate(pipe, spatial=PLAN) as handle:
        for strength in (0.12, 0.3, 0.5, 0.7, 0.9, 1.0):
            assert draw(pipe, entering(kind, pipe, strength)).isfinite().all()
            kinds.append(handle.report.stages[0].kind)
    order = ["fine", "mixed", "coarse"]
    assert kinds == sorted(kinds, key=order.index) and kinds[0] == "fine" and kinds[-1] == "coarse"


@pytest.mark.parametrize("kind", ["flux img2img", "flux inpaint", "sd3 img2img", "qwen img2img"])
def test_a_late_plan_keeps_the_detail_of_a_picture_that_shows_through_its_noise(kind: str) -> None:
    """It would be on coarse tokens there: half of what a picture holds would be gone."""
    pipe = ENTERING[kind][1]()
    for strength in (0.3, 0.5, 0.7):
        given = entering(kind, pipe, strength)
        with recorded(pipe.transformer) as calls:
            draw(pipe, given)
        first, begins = calls[0]["hidden_states"], levels(calls)
        with accelerate(pipe, spatial=LATE) as handle, recorded(pipe.transformer) as calls:
            draw(pipe, given)
        assert (begins[0] <= SHOWS) == all(step.tokens == (HEIGHT // 4) * (WIDTH // 4) for step in handle.report.steps)
        if begins[0] <= SHOWS:
            torch.testing.assert_close(calls[0]["hidden_states"], first, atol=CLOSE, rtol=CLOSE)
            assert levels(calls)[0] == pytest.approx(begins[0], abs=CLOSE)


@pytest.mark.parametrize("guidance", ["early", (True, False)])
def test_a_picture_on_fine_tokens_is_guided_down_to_where_the_plan_is(guidance: str | tuple[bool, ...]) -> None:
    pipe = ENTERING["sd3 img2img"][1]()
    given = entering("sd3 img2img", pipe, 0.4, guided=True)
    with accelerate(pipe, spatial=LATE, guidance=guidance) as handle:
        draw(pipe, given)
    steps = handle.report.steps
    assert [step.guided for step in steps] == [step.sigma > 1 - LATE.ends[0] for step in steps]
    assert {step.guided for step in steps} == {True, False} and len(handle.report.stages) == 1


def test_a_plan_on_fine_tokens_has_the_levels_of_its_stages() -> None:
    coarse, mixed, fine = Stage(0.0, (1.0, 0.8, 0.6)), Stage(0.3, (0.75, 0.5)), Stage(1.0, (0.65, 0.3, 0.0))
    whole = on_fine_tokens((coarse, mixed, fine))
    assert [stage.steps for stage in whole] == [0, 0, 5] and whole[-1].ratio == 1.0
    assert whole[-1].sigmas == (1.0, 0.8, 0.75, 0.65, 0.3, 0.0)
    assert entered((coarse, mixed, fine), 0.7)[-1].sigmas == (0.7, 0.65, 0.3, 0.0)
    assert [stage.steps for stage in entered((coarse, mixed, fine), 0.9)] == [2, 1, 2], "above, stage by stage"


@pytest.mark.parametrize("plan", ["ralu-12x", "ralu-18x"])
def test_tiny_flux_keeps_as_much_of_a_given_picture_as_stock_does(plan: str) -> None:
    pipe = TINY_FLUX.load()
    given = {"height": 64, "width": 64, "output_type": "np", "max_sequence_length": 16, "num_inference_steps": 8}
    picture = pipe("a large white ring on a red background", generator=torch.Generator().manual_seed(0), **given).images
    pipe = FluxImg2ImgPipeline.from_pipe(pipe)

    def missed(strength: float) -> float:
        """Decibels of the given picture."""
        found = pipe(
            "a green triangle", image=torch.from_numpy(picture).movedim(3, 1), strength=strength,
            generator=torch.Generator().manual_seed(1), **given,
        ).images  # fmt: skip
        return 10 * float(np.log10(np.square(found - picture).mean()))

    strengths = (0.25, 0.4, 0.6)
    stock = [missed(strength) for strength in strengths]
    with accelerate(pipe, spatial=plan):
        ours = [missed(strength) for strength in strengths]
    assert ours == pytest.approx(stock, abs=2.5) and ours == sorted(ours)


@pytest.mark.parametrize("kind", ENTERING)
def test_without_stages_strength_is_stocks_own(kind: str) -> None:
    pipe = ENTERING[kind][1]()
    given = entering(kind, pipe, 0.8)
    with recorded(pipe.transformer) as calls:
        stock = draw(pipe, given)
    begins = levels(calls)
    with accelerate(pipe, temporal=NEVER):
        assert torch.equal(draw(pipe, given), stock)
    with accelerate(pipe, temporal="taylorseer:2,first=1") as handle:
        assert draw(pipe, given).isfinite().all() and served(handle.report)
    assert [step.sigma for step in handle.report.steps] == pytest.approx(begins, abs=1e-3)


# ---- callbacks


def observed(pipe: Any, steps: int, run: Any) -> tuple[Seen, list[float]]:
    """What a callback saw: its step, its time step, how often the denoiser had been called; and those calls' levels."""
    seen: Seen = []
    with recorded(pipe.transformer) as calls:

        def callback(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append((number, float(timestep), len(calls)))
            assert pipe.num_timesteps == steps
            return tensors

        run(callback_on_step_end=callback)
    return seen, levels(calls)


def check_passed(report: Report | None, seen: Seen, begins: list[float]) -> None:
    """Each callback came as soon as the run had passed the level of its step, and not before."""
    assert report is not None
    ends = [*begins[1:], 0.0]
    for number, _, made in seen:
        so_far = report.steps[:made]
        assert min(step.sigma_next for step in so_far) < begins[number], f"step {number} before its level"
        assert so_far[-1].sigma > ends[number] - CLOSE, f"step {number} later than the first step beyond its level"


@cache
def stock_observed(family: str, steps: int) -> tuple[Seen, list[float]]:
    pipe = FAMILIES[family].make()
    return observed(pipe, steps, lambda **more: FAMILIES[family].run(pipe, num_inference_steps=steps, **more))


@pytest.mark.parametrize("setting", OTHER_HALF + STAGED, ids=str)
def test_callbacks_are_those_of_the_stock_schedule(setting: Setting) -> None:
    family = setting.family
    pipe = family.make()
    stock, begins = stock_observed(family.name, STEPS)
    assert [number for number, _, _ in stock] == list(range(STEPS))
    with accelerate(pipe, **setting.options) as handle:
        seen, _ = observed(pipe, STEPS, lambda **more: family.run(pipe, **more))
        check_accelerated(setting, handle.report)
        assert [call[:2] for call in seen] == [call[:2] for call in stock]
        if setting.policy not in FORECAST:  # which do not call the denoiser at every step
            if not setting.stages:
                assert seen == stock, "after each step"
            check_passed(handle.report, seen, begins)
        assert torch.equal(family.run(pipe), fast(setting))


@pytest.mark.parametrize("kind", ["flux img2img", "sd3 img2img", "qwen inpaint"])
def test_few_steps_after_what_strength_cuts_are_stock_under_forecasts(kind: str) -> None:
    """Of four and fewer all are computed, though of the whole schedule some would not be."""
    pipe = ENTERING[kind][1]()
    for strength in (0.12, 0.25, 0.4):
        given = entering(kind, pipe, strength)
        expected = draw(pipe, given)
        with accelerate(pipe, temporal=Forecast(3)) as handle:
            assert torch.equal(draw(pipe, given), expected)
            assert handle.report.completed and all(step.calls for step in handle.report.steps)


@pytest.mark.parametrize("plan", PLANS)
@each_family
def test_callbacks_on_plans_with_steps_of_their_own(family: Family, plan: str) -> None:
    pipe = family.make()
    stock, begins = stock_observed(family.name, 12)
    with accelerate(pipe, spatial=PLANS[plan]) as handle:
        seen, _ = observed(pipe, 12, lambda **more: family.run(pipe, num_inference_steps=12, **more))
        assert [call[:2] for call in seen] == [call[:2] for call in stock]
        check_passed(handle.report, seen, begins)


@pytest.mark.parametrize(
    "options", [{"spatial": PLAN}, {"temporal": "forecast:3"}, {"temporal": "taylorseer:3"}], ids=str
)
def test_a_pipeline_that_tells_callbacks_levels_instead_of_time_steps(options: dict[str, Any]) -> None:
    """CogView4's are told sigmas."""
    pipe = make_cogview4_pipeline()

    def told() -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []
        note = lambda pipe, number, level, tensors: seen.append((number, float(level))) or tensors  # noqa: E731
        pipe(**cogview4_pictures((0,), height=HEIGHT, width=WIDTH, callback_on_step_end=note))
        return seen

    stock = told()
    with accelerate(pipe, **options):
        assert told() == stock and stock[0][1] <= 1


def test_a_pipeline_whose_times_are_not_its_levels() -> None:
    """CogView4 shifts its levels and not the times that the model is given: each level keeps the time it has there."""
    pipe = make_cogview4_pipeline()

    def times(**options: Any) -> list[float]:
        given = cogview4_pictures((0,), height=HEIGHT, width=WIDTH, guidance_scale=1.0, num_inference_steps=STEPS)
        with recorded(pipe.transformer) as calls, accelerate(pipe, **options) as handle:
            pipe(**given)
        told.extend(step.sigma for step in handle.report.steps)
        return [float(call["timestep"].flatten()[0]) for call in calls]

    told: list[float] = []
    stock, levels = times(temporal="taylorseer:3"), [*told]
    assert abs(stock[4] - 1000 * levels[4]) > 40
    assert times(temporal="forecast:3") == pytest.approx([stock[place] for place in (0, 2, 5, 8)], abs=1e-3)
    told.clear()
    staged = times(spatial=PLAN)
    assert staged == pytest.approx(np.interp(told, [0.0, *levels[::-1]], [0.0, *stock[::-1]]), abs=1e-2)


@pytest.mark.parametrize("strength", [0.4, 0.8])
@pytest.mark.parametrize("kind", ["flux img2img", "flux inpaint", "sd3 img2img", "qwen img2img", "qwen inpaint"])
def test_callbacks_after_what_strength_cuts(kind: str, strength: float) -> None:
    pipe = ENTERING[kind][1]()
    given = entering(kind, pipe, strength)
    count = STEPS - int(STEPS - STEPS * strength)
    stock, begins = observed(pipe, count, lambda **more: draw(pipe, given | more))
    assert len(stock) == count
    for spatial in (PLAN, None):
        with accelerate(pipe, spatial=spatial, temporal=POLICIES["taylorseer"]) as handle:
            seen, _ = observed(pipe, count, lambda **more: draw(pipe, given | more))
            assert [call[:2] for call in seen] == [call[:2] for call in stock]
            check_passed(handle.report, seen, begins)


@each_family
def test_what_a_callback_changes_in_a_step_of_several_levels_stays_changed(family: Family) -> None:
    """Where one step of the plan passes several levels, each callback sees what the one before it gave."""
    pipe = family.make()
    seen: list[float] = []

    def add(given: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(tensors["latents"].mean()))
        return {"latents": tensors["latents"] + 100.0}

    with accelerate(pipe, spatial=RALU(steps=(1, 1, 1))):
        found = family.run(pipe, callback_on_step_end=add)
    assert len(seen) == STEPS and float(found.mean()) == pytest.approx(seen[-1] + 100, abs=0.1)
    assert np.diff(seen)[-3:] == pytest.approx([100.0] * 3, abs=0.1), "the last step passes more than three"


@each_family
def test_nothing_is_told_after_an_interrupt(family: Family) -> None:
    """Not the levels either that the same step of the plan has passed: its last one passes more than three."""
    pipe = family.make()
    told: list[int] = []

    def stop(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        told.append(number)
        pipe._interrupt = number == STEPS - 3
        return tensors

    with accelerate(pipe, spatial=RALU(steps=(1, 1, 1))):
        family.run(pipe, callback_on_step_end=stop)
    assert told == [*range(STEPS - 2)]


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("plan", PLANS)
def test_the_official_cutoff_callback_cuts_at_the_stock_noise_level(plan: str, ratio: float) -> None:
    family = FAMILIES["sd3"]
    pipe, (_, begins) = family.make(), stock_observed("sd3", 12)
    callback = SD3CFGCutoffCallback(cutoff_step_ratio=ratio)
    with accelerate(pipe, spatial=PLANS[plan], temporal=POLICIES["taylorseer"]) as handle:
        family.run(pipe, guided=True, num_inference_steps=12, callback_on_step_end=callback)
    samples = [step.samples for step in handle.report.steps]
    cut = samples.index(1) if 1 in samples else len(samples)  # a plan's last step may pass the level
    assert samples == [2] * cut + [1] * (len(samples) - cut)
    check_passed(handle.report, [(int(12 * ratio), 0.0, cut)], begins)


# ---- ControlNets


def controlling(name: str, pipe: Any) -> dict[str, Any]:
    """The arguments of a call in which the ControlNet has a say from 0.2 to 0.6 of the run."""
    given = FAMILIES[CONTROLNETS[name][0]].arguments(num_inference_steps=12)
    interval = {"control_guidance_start": 0.2, "control_guidance_end": 0.6}
    return accepted(pipe, given | interval | {"control_image": random_image(HEIGHT, WIDTH)})


@cache
def stock_controlled(name: str) -> tuple[Tensor, list[float], list[bool]]:
    """Of such a call by stock: the picture, the levels, and at which of them the ControlNet has a say."""
    pipe = CONTROLNETS[name][1]()
    with recorded(pipe.transformer) as calls:
        picture = draw(pipe, controlling(name, pipe))
    return picture, levels(calls), [controlled(call) for call in calls]


@pytest.mark.parametrize("name", CONTROLNETS)
def test_a_controlnets_interval_where_nothing_is_reused_is_stocks(name: str) -> None:
    pipe = CONTROLNETS[name][1]()
    with accelerate(pipe, temporal=NEVER):
        assert torch.equal(draw(pipe, controlling(name, pipe)), stock_controlled(name)[0])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", CONTROLNETS)
def test_a_controlnets_interval_means_noise_levels(name: str, plan: str) -> None:
    pipe = CONTROLNETS[name][1]()
    given, (_, begins, on) = controlling(name, pipe), stock_controlled(name)
    assert on == [False] * 3 + [True] * 4 + [False] * 5
    start, end = begins[on.index(True)], begins[len(on) - on[::-1].index(True)]
    with accelerate(pipe, spatial=PLANS[plan]) as handle, recorded(pipe.transformer) as calls:
        draw(pipe, given)
    assert len(calls) == len(handle.report.steps)
    clear = 0
    for step, call in zip(handle.report.steps, calls, strict=True):
        if step.sigma_next < start < step.sigma or step.sigma_next < end < step.sigma:
            continue  # the step passes an end of the interval
        clear += 1
        assert controlled(call) == (end < step.sigma <= start), f"{step.sigma} of {start} to {end}"
    assert clear >= 3


@pytest.mark.parametrize("name", CONTROLNETS)
def test_a_controlnets_interval_means_the_same_where_steps_are_forecast(name: str) -> None:
    pipe = CONTROLNETS[name][1]()
    given, (_, begins, on) = controlling(name, pipe), stock_controlled(name)
    stock = {round(level, 4): said for level, said in zip(begins, on, strict=True)}
    with accelerate(pipe, temporal=Forecast((3,), ramp=False, last=2)), recorded(pipe.transformer) as calls:
        draw(pipe, given)
    found = {round(level, 4): controlled(call) for level, call in zip(levels(calls), calls, strict=True)}
    assert len(found) == 6 and found == {level: stock[level] for level in found}


def controlled(call: dict[str, Any]) -> bool:
    """True if a ControlNet has a say in this call of the denoiser."""
    named = [value for name, value in call.items() if "controlnet" in name]
    return any(bool(part.any()) for value in named if isinstance(value, list | tuple | Tensor) for part in value)


# ---- levels of the caller's own

OWN = [1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.3, 0.2, 0.05]


@pytest.mark.parametrize(("name", "policy"), [*zip(cycle(("flux", "sd3", "qwen")), POLICIES, strict=False)])
def test_levels_of_the_callers_own(name: str, policy: str) -> None:
    family = FAMILIES[name]
    pipe = family.make()
    given: dict[str, Any] = {"sigmas": OWN, "num_inference_steps": len(OWN)}
    with recorded(pipe.transformer) as calls:
        stock = family.run(pipe, **given)
    begins = levels(calls)
    with accelerate(pipe, temporal=NEVER):
        assert torch.equal(family.run(pipe, **given), stock)
    with accelerate(pipe, temporal=POLICIES[policy]) as handle:
        assert family.run(pipe, **given).isfinite().all() and served(handle.report)
    assert [step.sigma for step in handle.report.steps] == pytest.approx(begins, abs=1e-3)
    with accelerate(pipe, spatial=PLAN, temporal=POLICIES[policy]) as handle:
        assert family.run(pipe, **given).isfinite().all()
    check_accelerated(Setting(family, policy, True), handle.report)
    assert handle.report.steps[0].sigma == pytest.approx(begins[0], abs=CLOSE)
    assert handle.report.steps[-1].sigma_next == 0


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen"])
def test_the_default_plan_takes_levels_of_the_callers_own(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.make()
    with accelerate(pipe, spatial="ralu") as handle:
        assert family.run(pipe, sigmas=OWN, num_inference_steps=len(OWN)).isfinite().all()
    assert [stage.kind for stage in handle.report.stages] == ["coarse", "fine"]
    assert handle.report.steps[0].sigma == 1.0 and handle.report.steps[-1].sigma_next == 0.0


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen"])
def test_a_plan_is_laid_out_along_levels_of_the_callers_own(name: str) -> None:
    """One stage has them as they are; several go through them at even distances in their number."""
    family = FAMILIES[name]
    pipe = family.make()
    given: dict[str, Any] = {"sigmas": OWN, "num_inference_steps": len(OWN)}
    with recorded(pipe.transformer) as calls:
        family.run(pipe, **given)
    with accelerate(pipe, spatial=RALU(split=(1,), ends=(1.0,))) as handle:
        family.run(pipe, **given)
    assert [step.sigma for step in handle.report.steps] == pytest.approx(levels(calls), abs=1e-3)


@pytest.mark.parametrize("bad", [{"nonsense": 1}, {"sample": torch.zeros(1)}], ids=["unknown", "twice"])
def test_a_step_refuses_the_arguments_that_stock_refuses(bad: dict[str, Any]) -> None:
    pipe, x = make_pipeline(), torch.zeros(1, 6, 16)
    with accelerate(pipe, spatial=RALU(steps=(2, 2), ends=(0.5, 1.0))) as handle, handle.call():
        pipe.scheduler.set_timesteps(4, mu=0.5)
        with pytest.raises(TypeError, match=next(iter(bad))):
            pipe.scheduler.step(x, pipe.scheduler.timesteps[0], x, **bad)
        with pytest.raises(TypeError, match="'sample'"):
            pipe.scheduler.step(x, pipe.scheduler.timesteps[0])
