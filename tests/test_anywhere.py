"""Forecasts and solvers by the scheduler alone: pipelines that no adapter serves, with their own schedulers."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import pickle
import threading
import weakref
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.coverage.exact import Linear, LoopPipeline, off_by, rounding
from ralu_cache import Acceleration, Forecast, accelerate
from tests.pipelines_any import SAMPLES, Sample, no_adapters  # noqa: F401
from tests.schedulers import FLOW, SCHEDULERS, scheduler_of
from tests.surroundings import looking, one_thread, recorded, together  # noqa: F401

each_scheduler = pytest.mark.parametrize("name", SCHEDULERS)
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)
every_third = Forecast(3, ramp=False)
STEPS = 9
AURA = next(sample for sample in SAMPLES if sample.cls == "AuraFlowPipeline")


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Any, Tensor]]:
    """Of every sample its pipeline, and what it gave before anything was accelerated."""
    pipes = {str(sample): sample.pipeline() for sample in SAMPLES}
    return {str(sample): (pipes[str(sample)], sample.run(pipes[str(sample)])) for sample in SAMPLES}


def loop(name: str = "flow", quantity: str = "clean", steps: int = 12) -> tuple[LoopPipeline, Linear]:
    pipe = LoopPipeline(scheduler_of(name))
    return pipe, Linear(pipe.scheduler, steps, quantity)


def curved(latents: Tensor, t: Any) -> Tensor:
    """A denoiser of no pattern."""
    return torch.sin(3 * latents + float(t) / 300)


# ---- what a scheduler's outputs and levels mean


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ipndm"])  # its first step loses the estimate
def test_levels_and_outputs_are_the_schedulers_own(name: str) -> None:
    """Of one clean estimate every stock scheduler makes a ray, `alpha clean + sigma noise`, down to the estimate."""
    pipe, model = loop(name)
    model.b.zero_()
    start, seen = next(iter(model.places.values())), list[tuple[Tensor, Any]]()
    noise = (model.latents - start.alpha * model.a) / start.sigma

    def note(latents: Tensor, t: Any) -> Tensor:
        place = model.places[t.item()]
        seen.append((model.unscaled(latents, place), place))
        return model(latents, t)

    end = pipe(note, model.latents)
    for latents, place in seen:
        torch.testing.assert_close(latents, place.alpha * model.a + place.sigma * noise, rtol=0.02, atol=0.02)
    keeps = 0.05 if name in ("pndm", "tcd") else 0.02  # which do not go down to 0
    torch.testing.assert_close(end, model.a, rtol=keeps, atol=keeps)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(SCHEDULERS)), quantity=st.sampled_from(["clean", "velocity"]),
    interval=st.integers(2, 4), steps=st.integers(12, 24), seed=st.integers(0, 99),
)  # fmt: skip
@example(name="edm", quantity="velocity", interval=2, steps=13, seed=0)  # whose times go below 0
def test_a_denoiser_linear_in_the_level_is_integrated_exactly(
    name: str, quantity: str, interval: int, steps: int, seed: int
) -> None:
    """From the second computed step on, whatever the scheduler's steps are and whatever its model predicts."""
    scheduler = scheduler_of(name)
    assert off_by(scheduler, quantity, interval, steps, seed) <= rounding(scheduler)


def test_solvers_are_refused_where_flow_match_steps_go_over_levels_of_another_kind() -> None:
    """Cosmos 2 adds noise up to 80: our steps would end elsewhere."""
    pipe, model = loop("cosmos")
    for solver in ("multistep", "dpm"):
        with pytest.raises(ValueError, match=r"sigma_max=80.0 is not supported.*temporal='forecast' without solver"):
            accelerate(pipe, solver=solver)
    with accelerate(pipe, temporal=every_third) as handle:
        pipe(model, model.latents)
    assert [step.sigma for step in handle.report.steps][:2] == pytest.approx([80 / 81, 48.86 / 49.86], rel=1e-3)


@each_scheduler
@pytest.mark.parametrize("steps", [2, 5, 12])
def test_with_every_step_computed_it_is_the_stock_pipeline_bit_for_bit(name: str, steps: int) -> None:
    pipe, model = loop(name, steps=steps)
    expected = pipe(curved, model.latents, steps)
    with accelerate(pipe, temporal="forecast:1") as handle:
        assert torch.equal(pipe(curved, model.latents, steps), expected)
    report = handle.report
    assert report is not None and report.completed
    assert all(step.calls == 1 and not step.forecast for step in report.steps)
    assert torch.equal(pipe(curved, model.latents, steps), expected)


@each_scheduler
def test_an_estimate_that_stays_is_integrated_exactly_from_the_first_step_on(name: str) -> None:
    pipe, model = loop(name)
    model.b.zero_()
    expected = pipe(model, model.latents)
    with accelerate(pipe, temporal=Forecast(3, ramp=False, quantity="clean")):
        torch.testing.assert_close(pipe(model, model.latents), expected, rtol=1e-5, atol=1e-5)


@each_scheduler
def test_the_model_is_called_at_computed_steps_alone(name: str) -> None:
    pipe, model = loop(name)
    pipe(model, model.latents)
    stock = list(model.asked)
    model.asked.clear()
    with accelerate(pipe, temporal=every_third) as handle:
        pipe(model, model.latents)
    assert model.asked == stock[::3]
    assert [step.calls for step in handle.report.steps] == [int(step % 3 == 0) for step in range(len(stock))]


# ---- pipelines


@each_sample
def test_pipelines_are_stock_where_all_is_computed_and_after_it(sample: Sample, made: Any) -> None:
    pipe, expected = made[str(sample)]
    cls, own = type(pipe), pipe.scheduler
    with accelerate(pipe, temporal="forecast:1") as handle:
        assert isinstance(handle, Acceleration)
        assert torch.equal(sample.run(pipe), expected)
        assert pipe.scheduler is own and type(own) is type(sample.scheduler())
    assert type(pipe) is cls and not vars(pipe).keys() & {"_ralu_cache_handle"}
    assert torch.equal(sample.run(pipe), expected)


@each_sample
def test_pipelines_call_the_model_at_computed_steps_alone(sample: Sample, made: Any, tmp_path: Any) -> None:
    """Nothing is hooked in the model; the report, the bar and a callback know of the other steps."""
    pipe, expected = made[str(sample)]
    denoiser, bars, told = getattr(pipe, sample.denoiser), list[Any](), list[None]()
    hooks = dict(denoiser._forward_pre_hooks), dict(denoiser._forward_hooks)
    with recorded(denoiser) as calls:
        sample.run(pipe)
        before = len(calls)
        with accelerate(pipe, temporal=every_third) as handle:
            assert len(denoiser._forward_pre_hooks) == 1 + len(hooks[0]) and denoiser._forward_hooks == hooks[1]
            pipe.progress_bar = lambda iterable=None, total=None: bars.append(Bar(iterable, total)) or bars[-1]
            calls.clear()
            others = {"callback_on_step_end": looking(lambda: told.append(None))} if takes(pipe) else {}
            found = sample.run(pipe, **others)
            del pipe.progress_bar
        report = handle.report
    assert report is not None and report.completed and found.isfinite().all() and found.shape == expected.shape
    steps, computed = len(report.steps), report.called_steps
    assert computed == -(-steps // 3) and before * computed == len(calls) * steps
    if takes(pipe):
        assert len(told) == steps
    counted = [bar for bar in bars if bar.total is not None]
    assert [(bar.total, bar.n) for bar in counted] == [(steps, steps)] * len(counted)
    text = str(report)
    assert f"{computed} of {steps} steps" in text and "unknown" in text and type(pipe.scheduler).__name__ in text
    if sample is SAMPLES[-1]:
        report.plot(tmp_path / "run.png"), report.save(tmp_path / "run.json")
        assert pickle.loads(pickle.dumps(report)).to_dict() == copy.deepcopy(report).to_dict() == report.to_dict()
        assert (tmp_path / "run.png").stat().st_size > 1000 and "null" in (tmp_path / "run.json").read_text()
    assert report.to_dict()["flops"] is None and 0 < report.peak_cached_bytes <= 4 * 4 * found.numel() + 4096


def takes(pipe: Any) -> bool:
    """Whether the pipeline's call takes a callback."""
    return "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters


class Bar:
    """A progress bar that counts."""

    def __init__(self, iterable: Any, total: int | None) -> None:
        self.iterable, self.total, self.n = iterable, total, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(self.iterable)

    def update(self, n: int = 1) -> None:
        self.n += n

    def set_postfix(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_strength_enters_where_stock_does(made: Any) -> None:
    """At the same level, after which the plan begins."""
    sample = next(sample for sample in SAMPLES if "strength" in sample.call)
    pipe, _ = made[str(sample)]
    times: list[float] = []
    hook = pipe.unet.register_forward_pre_hook(lambda net, args: times.append(float(args[1])))
    for strength in (0.5, 1.0):
        expected = sample.run(pipe, 12, strength=strength)
        stock = list(times)
        times.clear()
        with accelerate(pipe, temporal=every_third) as handle:
            sample.run(pipe, 12, strength=strength)
        assert times == stock[::3] and len(handle.report.steps) == len(stock) == 12 * strength
        with accelerate(pipe, temporal="forecast:1"):
            assert torch.equal(sample.run(pipe, 12, strength=strength), expected)
        times.clear()
    hook.remove()


def test_a_solver_without_an_adapter(made: Any) -> None:
    pipe, stock = made[str(AURA)]
    with accelerate(pipe, solver="multistep") as handle:
        found = AURA.run(pipe)
        assert found.isfinite().all() and not torch.equal(found, stock)
        assert handle.report.solver == "multistep" and handle.report.called_steps == STEPS
    with accelerate(pipe, temporal=every_third, solver="dpm") as handle:
        assert AURA.run(pipe).isfinite().all()
        assert handle.report.called_steps == 3 and len(handle.report.steps) == STEPS
    assert torch.equal(AURA.run(pipe), stock)


@pytest.mark.parametrize(("solver", "cls"), [("multistep", "UniPCMultistepScheduler"),
                                             ("dpm", "DPMSolverMultistepScheduler")])  # fmt: skip
def test_the_solver_is_that_of_diffusers(solver: str, cls: str) -> None:
    """On the same levels, of the same denoiser."""
    pipe, model = loop("flow")
    with accelerate(pipe, solver=solver):
        found = pipe(curved_flow, model.latents)
    other = getattr(diffusers, cls)(**FLOW)
    other.set_timesteps(12)
    pipe.scheduler.set_timesteps(12)
    other.sigmas = pipe.scheduler.sigmas.clone()
    other.sigmas[0] -= 1e-6
    x = model.latents
    for sigma, t in zip(pipe.scheduler.sigmas, other.timesteps, strict=False):
        x = other.step(curved_flow(x, sigma * 1000), t, x, return_dict=False)[0]
    torch.testing.assert_close(found, x, rtol=2e-4, atol=2e-4)


def curved_flow(latents: Tensor, t: Any) -> Tensor:
    return torch.tanh(latents * 0.5) + float(t) / 1000 * latents


def test_a_report_that_nobody_read_yet_is_copied_and_pickled_whole() -> None:
    pipe, model = loop("dpm")
    with accelerate(pipe, temporal=every_third) as handle:
        pipe(curved, model.latents)
    copies = [copy.deepcopy(handle.report), pickle.loads(pickle.dumps(handle.report))]
    assert all(other.to_dict() == handle.report.to_dict() for other in copies)
    assert len(handle.report.steps) == 12


# ---- ownership


def test_nothing_of_a_run_outlives_its_call(made: Any) -> None:
    pipe, _ = made[str(AURA)]
    alive: list[weakref.ref[Any]] = []

    def note(given: Any, number: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        alive.extend([weakref.ref(given.scheduler.run), weakref.ref(given.scheduler)])
        return tensors

    with accelerate(pipe, temporal=every_third):
        gc.disable()
        try:
            AURA.run(pipe, callback_on_step_end=lambda *given: given[3])
            AURA.run(pipe, callback_on_step_end=inside(pipe, note))
            assert alive and all(reference() is None for reference in alive)
        finally:
            gc.enable()


def inside(pipe: Any, do: Any) -> Any:
    """A callback that looks at the call's own scheduler, as the pipeline does."""
    from ralu_cache.engine.context import call_of

    def callback(given: Any, number: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        call = call_of(given)
        return tensors if call is None or call.outside is None else do(call.pipe, number, t, tensors)

    return callback


def test_calls_in_threads_have_runs_of_their_own() -> None:
    pipe, model = loop("dpm")
    other = Linear(pipe.scheduler, 20, "clean", seed=3)
    with accelerate(pipe, temporal=every_third):
        alone = pipe(curved, model.latents, 12), pipe(curved, other.latents, 20)
        found = together(lambda: pipe(curved, model.latents, 12), lambda: pipe(curved, other.latents, 20))
    assert all(torch.equal(one, two) for one, two in zip(alone, found, strict=True))


def test_disable_in_a_callback_waits_for_the_end_of_the_call() -> None:
    pipe, model = loop("unipc")
    stock = pipe(curved, model.latents)
    handle = accelerate(pipe, temporal=every_third)
    expected = pipe(curved, model.latents)

    def stop(given: Any, number: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        handle.disable()
        return tensors

    assert torch.equal(pipe(curved, model.latents, callback_on_step_end=stop), expected)
    assert type(pipe) is LoopPipeline and torch.equal(pipe(curved, model.latents), stock)


def test_a_failed_call_leaves_nothing_behind() -> None:
    pipe, model = loop("dpm")
    with accelerate(pipe, temporal=every_third) as handle:
        expected = pipe(curved, model.latents)
        calls = iter(range(3))

        def breaking(latents: Tensor, t: Any) -> Tensor:
            next(calls)
            return curved(latents, t)

        with pytest.raises(StopIteration):
            pipe(breaking, model.latents)
        assert not handle.report.completed and "did not finish" in str(handle.report)
        assert torch.equal(pipe(curved, model.latents), expected)


def test_copies_of_the_pipeline_are_accelerated_and_its_scheduler_is_stock() -> None:
    pipe, model = loop("unipc")
    stock = pipe(curved, model.latents)
    with accelerate(pipe, temporal=every_third):
        fast = pipe(curved, model.latents)
        for again in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
            assert torch.equal(again(curved, model.latents), fast)
        assert type(pipe.components["scheduler"]) is diffusers.UniPCMultistepScheduler
    assert torch.equal(pipe(curved, model.latents), stock)


def test_a_callback_sees_every_stock_step_and_what_it_changes_is_gone_on_from() -> None:
    pipe, model = loop("ddim")
    told: list[tuple[int, float]] = []

    def halve(given: Any, number: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        told.append((number, float(t)))
        return {"latents": tensors["latents"] / 2} if number == 5 else tensors

    stock_pipe, _ = loop("ddim")
    stock_pipe(curved, model.latents, callback_on_step_end=halve)
    stock_told, told[:] = list(told), []
    with accelerate(pipe, temporal=every_third):
        plain = pipe(curved, model.latents)
        changed = pipe(curved, model.latents, callback_on_step_end=halve)
    assert told == stock_told and not torch.allclose(plain, changed)


class Prompted(LoopPipeline):
    """Its model is given a prompt, and guided by a scale of the pipeline's."""

    @torch.no_grad()
    def __call__(self, latents: Tensor, scale: float, callback_on_step_end: Any = None, callback: Any = None) -> Tensor:
        self._guidance_scale, prompt = scale, torch.ones(1)
        self.scheduler.set_timesteps(12)
        for i, t in enumerate(self.scheduler.timesteps):
            output = curved(latents, t) * prompt * self._guidance_scale
            if hasattr(self, "unet"):
                output = output * self.unet.layer.scaling["a"]
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
            if callback is not None:
                callback(i, t, latents)
            if callback_on_step_end is not None:
                given = callback_on_step_end(self, i, t, {"latents": latents, "prompt_embeds": prompt})
                latents, prompt = given["latents"], given["prompt_embeds"]
        return latents


@pytest.mark.parametrize("how", ["scale", "prompt", "prompt in place", "legacy"])
def test_nothing_is_read_of_what_was_said_before_a_callback_changed_the_condition(how: str) -> None:
    """From the same latents on, whatever the scale was before."""
    pipe, model = Prompted(scheduler_of("flow")), loop("flow")[1]

    def change(given: Any, number: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if number != 5:
            return tensors
        if how == "scale":
            given._guidance_scale = 1.0
        elif how == "prompt":
            tensors["prompt_embeds"] = 1.0 / given._guidance_scale * tensors["prompt_embeds"]
        else:
            tensors["prompt_embeds"].div_(given._guidance_scale)
        return tensors | {"latents": model.latents}

    def legacy(number: int, t: Any, latents: Tensor) -> None:
        if number == 2:  # of the loop's own steps
            pipe._guidance_scale = 1.0
            latents.copy_(model.latents)

    callbacks = {"callback": legacy} if how == "legacy" else {"callback_on_step_end": change}
    with accelerate(pipe, temporal=every_third):
        found = [pipe(model.latents, scale, **callbacks) for scale in (2.0, 4.0)]
        assert torch.equal(*found)


class Weighed(torch.nn.Module):
    """A model with a LoRA, as peft leaves it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.peft_config, self.layer = {"a": None}, torch.nn.Identity()
        self.layer.active_adapters, self.layer.disable_adapters, self.layer.scaling = ["a"], False, {"a": scale}


@pytest.mark.parametrize("name", ["callback", "callback_on_step_end"])
def test_nothing_is_read_of_what_was_said_before_a_callback_weighed_a_lora_anew(name: str) -> None:
    """From the same latents on, whatever it weighed before."""
    pipe, model = Prompted(scheduler_of("flow")), loop("flow")[1]

    def weigh(*given: Any) -> Any:
        latents = given[-1] if name == "callback" else given[-1]["latents"]
        if given[-3] == (2 if name == "callback" else 5):  # of the loop's own steps; of the stock ones
            pipe.unet.layer.scaling["a"] = 1.0
            latents.copy_(model.latents)
        return given[-1]

    found = []
    with accelerate(pipe, temporal=every_third):
        for scale in (2.0, 4.0):
            pipe.unet = Weighed(scale)
            found.append(pipe(model.latents, 1.0, **{name: weigh}))
    assert torch.equal(*found)


def test_an_interrupt_that_the_pipeline_does_not_know_is_ignored_as_in_stock() -> None:
    pipe, model = loop("flow")
    pipe._interrupt = True
    told: list[None] = []
    with accelerate(pipe, temporal=every_third):
        pipe(curved, model.latents, callback_on_step_end=looking(lambda: told.append(None)))
    assert len(told) == 12


# ---- schedulers within a call


class Looking:
    """A model that looks at the pipeline's scheduler when it is called."""

    def __init__(self, pipe: Any, do: Any) -> None:
        self.pipe, self.do = weakref.ref(pipe), do

    def __call__(self, latents: Tensor, t: Any) -> Tensor:
        self.do(self.pipe().scheduler, t)
        return curved(latents, t)


@pytest.mark.parametrize("name", ["flow", "euler", "ddim", "unipc", "dpm"])
def test_within_a_call_the_scheduler_looks_like_the_users_own(name: str, tmp_path: Any) -> None:
    pipe, model = loop(name)
    stock = type(pipe.scheduler)
    folders: list[Any] = []

    def look(scheduler: Any, t: Any) -> None:
        cls = type(scheduler)
        assert isinstance(scheduler, stock) and cls.__name__ == stock.__name__
        assert cls == stock and not cls != stock and {stock: 1}[cls]  # noqa: SIM202, as Bria compares them
        assert cls != diffusers.LCMScheduler
        assert type(type(scheduler).from_config(scheduler.config)).__mro__[-2:] == stock.__mro__[-2:]
        assert scheduler.config == pipe.components["scheduler"].config
        folders.append(scheduler.save_pretrained(tmp_path))

    with accelerate(pipe, temporal=every_third):
        pipe(Looking(pipe, look), model.latents)
    assert len(folders) == 4 and stock.from_pretrained(tmp_path).config["_class_name"] == stock.__name__


def test_the_pipeline_is_shown_what_is_computed_and_stock_code_sees_the_stock_schedule() -> None:
    pipe, model = loop("flow")
    plain = scheduler_of("flow")
    plain.set_timesteps(12)
    noise = torch.ones_like(model.latents)

    def look(scheduler: Any, t: Any) -> None:
        assert torch.equal(scheduler.timesteps, plain.timesteps[::3])
        assert torch.equal(scheduler.sigmas, plain.sigmas[[0, 3, 6, 9, 12]])
        assert scheduler.index_for_timestep(plain.timesteps[4]) == 4
        noised = scheduler.scale_noise(model.latents, plain.timesteps[4:5], noise)
        assert torch.equal(noised, plain.scale_noise(model.latents, plain.timesteps[4:5], noise))

    with accelerate(pipe, temporal=every_third):
        pipe(Looking(pipe, look), model.latents)


def test_a_begin_index_is_told_in_levels_that_are_shown() -> None:
    pipe, model = loop("euler")
    seen: list[int] = []

    def look(scheduler: Any, t: Any) -> None:
        if not seen:
            scheduler.set_begin_index(1)
            seen.append(scheduler.begin_index)
            scheduler.set_begin_index(0)

    with accelerate(pipe, temporal=every_third):
        pipe(Looking(pipe, look), model.latents)
    assert seen == [3]


def test_copies_made_within_a_call_have_states_of_their_own() -> None:
    """As LTX-2 steps its sound, and SkyReels every frame: by deep copies of the scheduler."""

    class Two(LoopPipeline):
        early = True

        @torch.no_grad()
        def __call__(self, model: Any, latents: Tensor, num_inference_steps: int = 12) -> Tensor:
            first = copy.deepcopy(self.scheduler)
            if self.early:
                first.set_timesteps(num_inference_steps)
            self.scheduler.set_timesteps(num_inference_steps)
            if not self.early:
                first = copy.deepcopy(self.scheduler)
            sound = latents.flip(-1)
            for t in self.scheduler.timesteps:
                picture, other = model(latents, t), model(sound, t)
                latents = self.scheduler.step(picture, t, latents, return_dict=False)[0]
                sound = first.step(other, t, sound, return_dict=False)[0]
            kept.append(first)
            return torch.cat([latents, sound])

    kept: list[Any] = []
    for early in (True, False):
        Two.early = early
        pipe = Two(scheduler_of("unipc"))
        _, model = loop("unipc")
        with accelerate(pipe, temporal=every_third) as handle:
            found = pipe(curved, model.latents)
            single = LoopPipeline(scheduler_of("unipc"))
            with accelerate(single, temporal=every_third):
                expected = [single(curved, x) for x in (model.latents, model.latents.flip(-1))]
        assert torch.equal(found, torch.cat(expected))
        assert handle.report.called_steps == 4 and len(handle.report.steps) == 12
        assert type(kept[-1]).__mro__[0] is diffusers.UniPCMultistepScheduler, "stock once the call is over"


def test_a_pipeline_that_steps_copies_alone_is_reported() -> None:
    class Frames(LoopPipeline):
        @torch.no_grad()
        def __call__(self, model: Any, latents: Tensor, num_inference_steps: int = 12) -> Tensor:
            self.scheduler.set_timesteps(num_inference_steps)
            each = [copy.deepcopy(self.scheduler) for _ in range(2)]
            frames = [latents, latents + 1]
            for t in self.scheduler.timesteps:
                frames = [
                    own.step(model(frame, t), t, frame, return_dict=False)[0]
                    for own, frame in zip(each, frames, strict=True)
                ]
            return torch.cat(frames)

    pipe = Frames(scheduler_of("unipc"))
    _, model = loop("unipc")
    with accelerate(pipe, temporal=every_third) as handle:
        assert pipe(curved, model.latents).isfinite().all()
    assert handle.report.completed and handle.report.called_steps == 4


def test_levels_per_token() -> None:
    """LTX gives each token a level of its own: those of given frames stand still in all steps."""
    pipe = LoopPipeline(scheduler_of("flow"))
    latents = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([[1000.0, 0.0, 1000.0, 1000.0, 0.0]])

    def tokens(scheduler: Any, t: Any) -> dict[str, Any]:
        return {"per_token_timesteps": times.clamp(max=float(t))}

    def velocity(x: Tensor, t: Any) -> Tensor:
        return torch.ones_like(x)

    stock = pipe(velocity, latents, step_arguments=tokens)
    with accelerate(pipe, temporal=every_third):
        found = pipe(velocity, latents, step_arguments=tokens)
    torch.testing.assert_close(found, stock)
    assert torch.equal(found[:, [1, 4]], latents[:, [1, 4]]) and not torch.equal(found, latents)


def test_frames_that_are_dropped_in_mid_run() -> None:
    pipe, model = loop("unipc")
    counts: list[int] = []

    def drop(given: Any, number: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"][..., :2]} if number == 5 else tensors

    def count(latents: Tensor, t: Any) -> Tensor:
        counts.append(latents.shape[-1])
        return curved(latents, t)

    pipe.scheduler = scheduler_of("flow")  # a history in the scheduler would not survive it
    with accelerate(pipe, temporal=every_third):
        assert pipe(count, model.latents, callback_on_step_end=drop).shape[-1] == 2
    assert counts == [3, 3, 2, 2]


def test_what_a_pipeline_writes_into_its_levels_counts() -> None:
    """Cosmos holds the last level, so that its last step changes nothing."""

    class Writing(LoopPipeline):
        @torch.no_grad()
        def __call__(self, model: Any, latents: Tensor, num_inference_steps: int = 12) -> Tensor:
            self.scheduler.set_timesteps(num_inference_steps)
            self.scheduler.sigmas[-1] = self.scheduler.sigmas[-2]
            for t in self.scheduler.timesteps:
                latents = self.scheduler.step(model(latents, t), t, latents, return_dict=False)[0]
            return latents

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.register_to_config(final_sigmas_type="sigma_min")
    pipe, model = Writing(scheduler), Linear(scheduler, 12, "clean")
    expected = pipe(model, model.latents)
    with accelerate(pipe, temporal="forecast:1"):
        assert torch.equal(pipe(model, model.latents), expected)
    with accelerate(pipe, temporal=Forecast(4, ramp=False, first=2, gap=0.0, quantity="clean")):
        torch.testing.assert_close(pipe(model, model.latents), expected, rtol=1e-5, atol=1e-5)


# ---- what is refused, and what is said


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: diffusers.EulerAncestralDiscreteScheduler(), "EulerAncestralDiscreteScheduler draws fresh noise"),
        (lambda: diffusers.DDPMScheduler(), "DDPMScheduler draws fresh noise"),
        (lambda: diffusers.LCMScheduler(), "LCMScheduler draws fresh noise"),
        (lambda: diffusers.HeunDiscreteScheduler(), "HeunDiscreteScheduler calls the model several times a step"),
        (lambda: diffusers.KDPM2DiscreteScheduler(), "KDPM2DiscreteScheduler calls the model several times"),
        (lambda: diffusers.FlowMatchHeunDiscreteScheduler(), "FlowMatchHeunDiscreteScheduler calls the model several"),
        (lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "algorithm_type='sde-dpm"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling=True"),
        (lambda: diffusers.PNDMScheduler(), "skip_prk_steps=False"),
        (lambda: diffusers.VQDiffusionScheduler(num_vec_classes=4), "VQDiffusionScheduler steps in a way of its own"),
    ],
)  # fmt: skip
def test_schedulers_that_are_refused_by_name(scheduler: Any, message: str) -> None:
    pipe = LoopPipeline(scheduler())
    with pytest.raises((TypeError, ValueError), match=message):
        accelerate(pipe, temporal="forecast")
    assert type(pipe) is LoopPipeline


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spatial": "ralu"}, TypeError, r"LoopPipeline \(no transformer\) is not supported.*temporal='forecast:3'"),
        ({"temporal": "teacache"}, TypeError, "temporal='teacache' needs a pipe.transformer made of blocks"),
        ({"temporal": "toca"}, TypeError, "temporal='toca' needs an adapter; what works here: temporal='forecast:3'"),
        ({"speedup": 4}, TypeError, "speedup=4 needs an adapter"),
        ({"guidance": "early"}, TypeError, "guidance='early' needs an adapter"),
        ({"temporal": Forecast(tolerance=0.2)}, ValueError, r"tolerance=0.2 asks the model.*LoopPipeline"),
        ({"temporal": Forecast((2, 3))}, ValueError, r"interval=\(2, 3\) is for 2 stages"),
        ({"solver": "multistep"}, TypeError, "UniPCMultistepScheduler is not supported by this setting"),
    ],
)  # fmt: skip
def test_settings_that_need_more(options: dict[str, Any], error: type[Exception], message: str) -> None:
    pipe = LoopPipeline(scheduler_of("unipc"))
    with pytest.raises(error, match=message):
        accelerate(pipe, **options)
    assert type(pipe) is LoopPipeline


def test_a_loop_that_leaves_out_a_step_of_its_own() -> None:
    """As LTXI2VLongMultiPrompt's, which leaves out the last: of fewer that would be another."""

    class Short(LoopPipeline):
        def __call__(self, model: Any, latents: Tensor, stop: int | None = None) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            self._interrupt = False
            for i, t in enumerate(self.scheduler.timesteps[:-1]):
                latents = self.scheduler.step(model(latents, t), t, latents, return_dict=False)[0]
                self._interrupt = i == stop
                if self._interrupt:
                    break
            return latents

    scheduler = scheduler_of("flow")
    pipe, model = Short(scheduler), Linear(scheduler, STEPS, "velocity")
    stock = pipe(model, model.latents)
    with accelerate(pipe, temporal=every_third):
        with pytest.raises(RuntimeError, match=r"Short ended after 6 of 9 steps: it leaves out steps .* disable it"):
            pipe(model, model.latents)
        assert pipe(model, model.latents, stop=1).isfinite().all(), "an interrupt is no such thing"
    with accelerate(pipe, temporal="forecast:1"):
        assert torch.equal(pipe(model, model.latents), stock)


def test_an_interrupt_of_another_call_hides_no_step_that_is_left_out() -> None:
    """A flag that somebody set once, and that this pipeline neither resets nor heeds."""

    class Heedless(LoopPipeline):
        def __call__(self, model: Any, latents: Tensor) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            for t in self.scheduler.timesteps[:-1]:
                latents = self.scheduler.step(model(latents, t), t, latents, return_dict=False)[0]
            return latents

    scheduler = scheduler_of("flow")
    pipe, model = Heedless(scheduler), Linear(scheduler, STEPS, "velocity")
    pipe._interrupt = True
    with accelerate(pipe, temporal=every_third), pytest.raises(RuntimeError, match="Heedless ended after 6 of 9 steps"):
        pipe(model, model.latents)


@pytest.mark.parametrize(("name", "advised"), [("dpm-flow", True), ("dpm", False), ("ddim", False)])
def test_another_scheduler_is_advised_to_models_of_a_flow_alone(name: str, advised: bool) -> None:
    """A model that predicts epsilon would draw noise on it."""
    with pytest.raises(TypeError, match="is not supported by this setting") as refusal:
        accelerate(LoopPipeline(scheduler_of(name)), solver="multistep")
    assert ("set pipe.scheduler" in str(refusal.value)) is advised


def test_a_loop_that_puts_back_states_of_its_scheduler() -> None:
    """As StableDiffusionPanorama's, whose views are stepped in turn: what was kept of one is not another's."""

    class Views(LoopPipeline):
        def __call__(self, model: Any, latents: Tensor) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            views = [latents, latents + 1]
            states = [copy.deepcopy(vars(self.scheduler)) for _ in views]
            for t in self.scheduler.timesteps:
                for number, view in enumerate(views):
                    vars(self.scheduler).update(states[number])
                    views[number] = self.scheduler.step(model(view, t), t, view, return_dict=False)[0]
                    states[number] = copy.deepcopy(vars(self.scheduler))
            return torch.cat(views)

    scheduler = scheduler_of("ddim")
    pipe, model = Views(scheduler), Linear(scheduler, STEPS, "velocity")
    stock = pipe(model, model.latents)
    refused = pytest.raises(RuntimeError, match=r"copies its scheduler's state.*disable")
    with accelerate(pipe, temporal=every_third), refused:
        pipe(model, model.latents)
    with accelerate(pipe, temporal="forecast:1"):
        assert torch.equal(pipe(model, model.latents), stock)
    assert torch.equal(pipe(model, model.latents), stock)


def test_a_progress_bar_of_the_pipelines_own_kind() -> None:
    """As Marigold's, which takes what it is called, too."""
    told: list[tuple[int | None, str | None]] = []

    class Named(LoopPipeline):
        def progress_bar(self, iterable: Any = None, total: int | None = None, desc: str | None = None) -> Any:
            told.append((total, desc))
            return super().progress_bar(iterable, total)

        def __call__(self, model: Any, latents: Tensor) -> Tensor:
            self.progress_bar(total=STEPS, desc="a fox")
            return LoopPipeline.__call__(self, model, latents, STEPS)

    scheduler = scheduler_of("ddim")
    pipe, model = Named(scheduler), Linear(scheduler, STEPS, "velocity")
    with accelerate(pipe, temporal=every_third):
        assert pipe(model, model.latents).isfinite().all()
    assert told[0] == (STEPS, "a fox")


def test_steps_counted_from_the_end() -> None:
    """As TextToVideoZero's `t0` and `t1`, of which no value means nothing."""

    class Zero(LoopPipeline):
        def __call__(self, model: Any, latents: Tensor, t0: int = 3, t1: int = 5) -> Tensor:
            return LoopPipeline.__call__(self, model, latents)

    scheduler = scheduler_of("ddim")
    pipe, model = Zero(scheduler), Linear(scheduler, STEPS, "velocity")
    with accelerate(pipe, temporal=every_third), pytest.raises(ValueError, match=r"t0=3 counts steps.*; compute every"):
        pipe(model, model.latents)


def test_eta_and_arguments_that_count_steps() -> None:
    class Ending(LoopPipeline):
        def __call__(
            self, model: Any, latents: Tensor, eta: float = 0.0, denoising_end: float | None = None
        ) -> Tensor:
            return LoopPipeline.__call__(self, model, latents, eta=eta)

    scheduler = scheduler_of("ddim")
    pipe, model = Ending(scheduler), Linear(scheduler, 12, "clean")
    with accelerate(pipe, temporal=every_third):
        with pytest.raises(ValueError, match=r"eta=0.5 draws fresh noise"):
            pipe(curved, model.latents, eta=0.5)
        with pytest.raises(ValueError, match=r"denoising_end=0.8 counts steps"):
            pipe(curved, model.latents, denoising_end=0.8)
        assert pipe(curved, model.latents, eta=0.0).isfinite().all()
    with accelerate(pipe, temporal="forecast:1"):
        assert pipe(curved, model.latents, eta=0.5, denoising_end=0.8).isfinite().all(), "all is computed"


def test_outputs_that_are_not_the_schedulers_input() -> None:
    pipe, model = loop("ddim")
    with accelerate(pipe, temporal=every_third), pytest.raises(ValueError, match=r"output \(2, 2, 3\) is not what"):
        pipe(lambda x, t: torch.cat([x, x]), model.latents)


def test_pipelines_that_go_their_own_way_are_told_from_others() -> None:
    class Slicing(LoopPipeline):
        @torch.no_grad()
        def __call__(self, model: Any, latents: Tensor, num_inference_steps: int = 12) -> Tensor:
            self.scheduler.set_timesteps(num_inference_steps)
            for t in self.scheduler.timesteps[2:]:
                latents = self.scheduler.step(model(latents, t), t, latents, return_dict=False)[0]
            return latents

    class Numbering(LoopPipeline):
        @torch.no_grad()
        def __call__(self, model: Any, latents: Tensor, num_inference_steps: int = 12) -> Tensor:
            for number in range(num_inference_steps):
                latents = latents - model(latents, number) / num_inference_steps
            return latents

    pipe, model = Slicing(scheduler_of("ddim")), loop("ddim")[1]
    with accelerate(pipe, temporal=every_third), pytest.raises(RuntimeError, match="in a way of its own"):
        pipe(curved, model.latents)
    pipe = Numbering(scheduler_of("ddim"))
    with accelerate(pipe, temporal=every_third) as handle:
        assert pipe(curved, model.latents).isfinite().all()
    assert handle.report is None


def test_pipelines_of_pipelines_and_without_a_scheduler() -> None:
    class Outer(diffusers.DiffusionPipeline):
        def __init__(self) -> None:
            super().__init__()
            self.inner = LoopPipeline(scheduler_of("flow"))

        def __call__(self) -> None: ...

    pipe = Outer()
    with pytest.raises(TypeError, match=r"Outer runs pipelines of its own; accelerate those: pipe.inner"):
        accelerate(pipe, temporal="forecast")
    del pipe.inner
    with pytest.raises(TypeError, match=r"Outer has no pipe.scheduler"):
        accelerate(pipe, temporal="forecast")
    for wrong in (object(), torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="is not a diffusers pipeline"):
            accelerate(wrong, temporal="forecast")


def test_a_scheduler_that_was_swapped_is_noticed_when_a_call_begins() -> None:
    pipe, model = loop("flow")
    own = pipe.scheduler
    with accelerate(pipe, temporal=every_third) as handle:
        fast = pipe(curved, model.latents)
        pipe.scheduler = scheduler_of("dpm")
        assert pipe(curved, model.latents).isfinite().all() and handle.report.called_steps == 4
        assert handle.report.scheduler == "DPMSolverMultistepScheduler"
        pipe.scheduler = diffusers.LCMScheduler()
        with pytest.raises(TypeError, match="LCMScheduler draws fresh noise"):
            pipe(curved, model.latents)
        pipe.scheduler = own
        assert torch.equal(pipe(curved, model.latents), fast)
    with accelerate(pipe, solver="multistep"):
        pipe.scheduler = scheduler_of("dpm")
        with pytest.raises(TypeError, match="DPMSolverMultistepScheduler is not supported by this setting"):
            pipe(curved, model.latents)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_calls_of_few_steps_are_stock_and_say_so_once(steps: int, caplog: pytest.LogCaptureFixture) -> None:
    pipe, model = loop("dpm")
    stock = pipe(curved, model.latents, steps)
    with caplog.at_level(logging.WARNING, "ralu_cache"), accelerate(pipe, temporal="forecast:3") as handle:
        for _ in range(2):
            assert torch.equal(pipe(curved, model.latents, steps), stock)
            assert any(f"it has {steps} steps" in notice for notice in handle.report.notices)
        pipe(curved, model.latents, 12)
        assert not handle.report.notices
    assert len([record for record in caplog.records if "changed nothing" in record.getMessage()]) == 1


def test_noise_that_cogvideo_draws_is_said_once(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    sample = next(sample for sample in SAMPLES if isinstance(sample.scheduler(), diffusers.CogVideoXDPMScheduler))
    pipe, _ = made[str(sample)]
    with caplog.at_level(logging.WARNING, "ralu_cache"), accelerate(pipe, temporal=every_third):
        sample.run(pipe), sample.run(pipe)
    assert len([record for record in caplog.records if "draws fresh noise" in record.getMessage()]) == 1


def test_half_precision_goes_through(made: Any) -> None:
    pipe, model = loop("unipc")
    latents = model.latents.to(torch.bfloat16)
    with accelerate(pipe, temporal=every_third):
        found = pipe(curved, latents)
    assert found.dtype == torch.bfloat16 and found.isfinite().all()


def test_a_second_accelerate_replaces_the_first() -> None:
    pipe, model = loop("dpm")
    first = accelerate(pipe, temporal=every_third)
    with accelerate(pipe, temporal="forecast:1") as second:
        pipe(curved, model.latents)
        assert first.report is None and not first.enabled and second.report.called_steps == 12
    with pytest.raises(ValueError, match="unheard"):
        accelerate(pipe, solver="unheard")


def test_a_worker_thread_without_the_calls_context_is_stock() -> None:
    pipe, model = loop("dpm")
    stock = pipe(curved, model.latents)
    found: list[Tensor] = []

    def meanwhile(given: Any, number: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if number == 4:
            other = LoopPipeline(pipe.components["scheduler"])
            thread = threading.Thread(target=lambda: found.append(other(curved, model.latents)))
            thread.start()
            thread.join()
        return tensors

    with accelerate(pipe, temporal=every_third):
        pipe(curved, model.latents, callback_on_step_end=meanwhile)
    assert torch.equal(found[0], stock)
