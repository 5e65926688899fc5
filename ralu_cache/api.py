"""accelerate(): install an acceleration on a stock pipeline, and undo it."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import nn

from ralu_cache.adapters.base import Adapter, find_adapter
from ralu_cache.engine.autoencoder import autoencoder_of
from ralu_cache.engine.call import Call, clear_frames
from ralu_cache.engine.context import entered
from ralu_cache.engine.disguise import stock_of
from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.levels import StockSchedule, redivided
from ralu_cache.engine.pipeline import handle_of, undress, wear
from ralu_cache.engine.root import RootHook
from ralu_cache.engine.run import Run
from ralu_cache.engine.scheduler import check_scheduler
from ralu_cache.plane.budget import BASE, UNKNOWN, Budget, coarse_cost, wanted_speedup
from ralu_cache.plane.guidance import Guidance, resolve_guidance
from ralu_cache.plane.schedule import end_before_zero
from ralu_cache.plane.spatial import SpatialMethod, Stage, resolve_spatial
from ralu_cache.report.record import Report
from ralu_cache.temporal import Policy, resolve_temporal
from ralu_cache.temporal.coefficients import Settled, settle

logger = logging.getLogger("ralu_cache")


def accelerate(
    pipe: Any,
    spatial: str | SpatialMethod | None = None,
    temporal: str | Policy | None = None,
    speedup: str | float | None = None,
    guidance: str | Guidance | tuple[bool, ...] | None = None,
) -> Acceleration:
    """Make a stock diffusers pipeline faster in place; the call stays ``pipe(prompt, ...)``.

    spatial: None, "ralu" (the family's default plan), "ralu-4x", "ralu-5x", "ralu-7x", "ralu-2x", "ralu-3x", the name
        of a registered method, or a `RALU(...)`.
    temporal: None, "teacache", "seacache", "taylorseer", "toca", "adaptive", each with its main setting after a colon
        if wanted ("teacache:0.4"), the name of a registered policy, or a config such as `SeaCache(threshold=0.3)`.
        Together with `spatial` the first step of every stage is computed, for nothing that was cached can stand for it,
        but each token goes on along the trend that it, or the one that it was split from, had before: at the same cost
        that was 0.6 to 1.6 dB closer to the uncached plan than forgetting (`benchmarks/results/composition`).
    guidance: in which steps classifier-free guidance is computed: None (as the plan says; most leave it to the call),
        "all" (as the call says), "early" (in the stages that aren't fine; without stages until t = 0.5), "early:0.65",
        a tuple of one bool a stage, or a `Guidance(...)`. In the other steps the pipeline's own formula is given the
        prediction with the prompt for both, so they cost half.
    speedup: instead of both, 4 or "4x": every call costs the denoiser at least that many times fewer FLOPs than the
        same call in full, by a plan of coarse and fine steps made for its size and `num_inference_steps`; a call for
        which that can't be is refused, with the most that can be had. Which plans draw well was measured on the
        embedded models alone, and is said so once.

    Returns the handle: `report`, `disable()`, and a context manager that disables on exit. A second call replaces the
    first, it never stacks. Raises TypeError for an unsupported pipeline or scheduler and ValueError for an unknown
    method or option; each names what was given and what is accepted.
    """
    if speedup is not None and (spatial is not None or temporal is not None):
        raise ValueError(f"speedup={speedup!r} chooses both; leave out spatial={spatial!r} and temporal={temporal!r}")
    settings = {"spatial": spatial, "temporal": temporal, "speedup": speedup, "guidance": guidance}
    adapter = find_adapter(pipe)
    budget = None if speedup is None else Budget(wanted_speedup(speedup))
    names = (adapter.default_preset if spatial == "ralu" else spatial if budget is None else budget, temporal)
    plan, label = ("none" if name is None else name if isinstance(name, str) else repr(name) for name in names)
    settled = settle(resolve_temporal(temporal), label, pipe.transformer, adapter.family, plan)
    method = resolve_spatial(spatial, adapter.default_preset) if budget is None else BASE
    guided = resolve_guidance(guidance if guidance is not None else getattr(method, "guidance", None))
    check_scheduler(vars(pipe)["scheduler"])
    handle = Acceleration(pipe, type(adapter), method, plan, settled, settings, guided, budget)  # may refuse
    previous = handle_of(pipe)
    wear(pipe, handle)
    if previous is not None:
        previous.disable()
    return handle


class Acceleration:
    """The handle of an accelerated pipeline: its report, and the way back to the stock pipeline."""

    def __init__(
        self,
        pipe: Any,
        family: type[Adapter],
        method: SpatialMethod | None,
        plan: str,
        temporal: Settled,
        settings: Mapping[str, Any],
        guidance: Guidance | None = None,
        budget: Budget | None = None,
    ) -> None:
        """plan: the method's name. settings: what `accelerate` was given, for copies of the pipeline.
        budget: gives each call a plan of its own in place of `method`, which has the same stages.
        """
        self.settings, self.accelerate = dict(settings), accelerate
        self.enabled = True
        self.guidance = guidance
        self._budget = budget
        self._pipe, self._family, self._method, self._plan = weakref.ref(pipe), family, method, plan
        self._policy, self._temporal = temporal.policy, temporal
        self._report: Report | None = None
        self._told: set[str] = set()
        self._lock = threading.RLock()
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._roots: list[RootHook] = []
        self._refresh(pipe)
        self._end = weakref.finalize(pipe, self.disable)
        self._end.atexit = False

    @property
    def report(self) -> Report | None:
        """What the latest pipeline call did (`completed` is False if it was cut short); None before the first."""
        return self._report

    def disable(self) -> None:
        """Give back the stock pipeline, bit for bit. Calling it again does nothing.

        Within a call (a callback's, or another thread's) it waits for the end of the calls that are under way.
        """
        with self._lock:
            self.enabled = False
            if len(self._calls):
                return
            for root in self._roots:
                root.remove()
            self._roots = []
        self._end.detach()
        if (pipe := self._pipe()) is not None:
            undress(pipe, self)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()

    @contextmanager
    def call(self, pipe: Any = None, /, **given: Any) -> Iterator[None]:
        """What runs within it, in this context, is one accelerated call of the pipeline: for loops of one's own.

        The pipeline's own `__call__` does this by itself; `FluxPipeline.__call__(pipe, ...)`, a bound method that was
        taken before `accelerate()`, or a loop that goes through `pipe.scheduler` and `pipe.transformer` needs it. Other
        threads do not belong to it, unless they run in a copy of the context. given: the arguments of the pipeline's
        call, where there is one. Raises RuntimeError once disabled, and what the call itself would be refused with.
        """
        pipe = self._pipe() if pipe is None else pipe
        if pipe is None or not self.enabled:
            raise RuntimeError("this handle is disabled, or its pipeline is gone; call accelerate(pipe, ...) again")
        self._refresh(pipe)
        call = Call(self, pipe, given)
        self._calls.add(call)
        try:
            with entered(call):
                yield
        except BaseException as error:
            clear_frames(error.__traceback__)
            raise
        finally:
            call.close()
            self._calls.discard(call)
            del call
            self._retire()

    def _retire(self) -> None:
        """Carry out what `disable` left to the end of the last call."""
        if not self.enabled:
            self.disable()

    @property
    def wants_text_attention(self) -> bool:
        """True if regions are chosen by it."""
        return self._method is not None and "text_attention" in self._method.scorer.needs

    def new_run(self, call: Call, model_shift: float, sigmas: list[float], custom: bool) -> Run | None:
        """The run of a call whose stock levels are `sigmas` (`custom`: the caller's own); None if all is stock.

        What is refused is refused before there is a report of it.
        """
        if self._method is None and self._policy is None and self.guidance is None:
            return None
        num_inference_steps = len(sigmas) - 1
        adapter, method = self._roots[0].adapter, self._method
        notice = None if method is None else method.overrides(num_inference_steps)
        if self._budget is not None:
            method = self._budget.plan(num_inference_steps, _coarse_cost(call, adapter))
            notice = self._budget.told(num_inference_steps)
        stages: tuple[Stage, ...] = (Stage(1.0, tuple(sigmas)),)
        if method is not None:
            stages = _staged(method, call, model_shift, sigmas, custom)
        self._report = Report(
            pipeline=type(call.pipe).__name__, spatial=self._plan, temporal=self._temporal.name,
            baseline_steps=num_inference_steps,
        )  # fmt: skip
        self._tell(self._report, self._temporal.notice)
        self._tell(self._report, notice)
        modules = [root.module for root in self._roots]
        _reset_stock_caches(modules)
        return Run(
            method, stages, _geometry(call.pipe, adapter), autoencoder_of(call.pipe), self._report, self._policy,
            lambda: _reset_stock_caches(modules), StockSchedule(tuple(sigmas)), call.watched, self.guidance,
        )  # fmt: skip

    def finish(self, run: Run) -> None:
        """A run is over, at its end or before."""
        run.tally.read_clocks()
        report = run.report
        if self.guidance is not None and report.completed and not run.paired:
            self._tell(
                report,
                f"guidance={self.guidance.told!r} changes nothing in this call: {report.pipeline} computed every "
                "picture once a step (its guidance is distilled, or was not asked for)",
            )
        if run.tally.controlled and (unread := sum(step.reused == step.samples > 0 for step in report.steps)):
            self._tell(
                report,
                f"the ControlNet ran at all {len(report.steps)} steps, though at {unread} of them every sample reused "
                "a residual that holds its part already: pipelines call it before the transformer, where that is "
                "decided; control_guidance_end=... leaves it out for good",
            )
        if report.completed and run.tally.flops > 1.001 * report.baseline_flops:
            cost = run.tally.flops / report.baseline_flops
            steps = f"num_inference_steps={report.baseline_steps} in full, {len(report.steps)} steps here"
            self._tell(
                report,
                f"this setting made the call slower than the stock pipeline: {cost:.2f} times its FLOPs ({steps}); "
                "disable it, or choose a plan with fewer steps",
            )

    def answerer(self, module: Any) -> Any:
        """What may answer for a denoiser of ours, or None."""
        return next((root.answer for root in self._roots if root.module is module), None)

    def guidance_scale(self, call: Call, module: Any) -> float:
        """The scale that the pipeline's own formula has for this denoiser."""
        given = call.given
        if given.get("true_cfg_scale") is not None:
            return float(given["true_cfg_scale"])
        second = module is getattr(call.pipe, "transformer_2", None) and given.get("guidance_scale_2") is not None
        return float(given["guidance_scale_2"] if second else given.get("guidance_scale") or 1.0)

    def control_scale(self, call: Call, number: int) -> dict[str, Any]:
        """The conditioning scale of a ControlNet, on and off at the noise levels that the caller's shares mean."""
        run, given = call.run, call.given
        scale = _of_net(given.get("controlnet_conditioning_scale"), number)
        if run is None or scale is None:
            return {}
        start = _of_net(given.get("control_guidance_start", 0.0), number)
        end = _of_net(given.get("control_guidance_end", 1.0), number)
        step, steps = min(run.stock.passed(run.sigma), run.stock.steps - 1), run.stock.steps
        inside = step / steps >= start and (step + 1) / steps <= end
        return {"conditioning_scale": scale * float(inside)}

    def _refresh(self, pipe: Any) -> None:
        """Hook what the pipeline is made of now. Raises, before anything is changed, for what can't be served."""
        with self._lock:
            transformers, nets = _transformers(pipe), _controlnets(pipe)
            for transformer in transformers:
                _check(transformer, self._family, self._policy)
            known = {id(root.module): root for root in self._roots}
            roots = []
            try:
                for transformer in transformers:
                    root = known.get(id(transformer))
                    if root is None:
                        root = RootHook(transformer, self._family(transformer), self, self._policy)
                    else:
                        root.refresh()
                    roots.append(root)
                for number, net in enumerate(nets):
                    root = known.get(id(net))
                    roots.append(root or RootHook(net, roots[0].adapter, self, number=number))
            except BaseException:
                for root in roots:
                    if id(root.module) not in known:
                        root.remove()
                raise
            for root in self._roots:
                if root not in roots:
                    root.remove()
            self._roots = roots

    def _tell(self, report: Report, notice: str | None) -> None:
        """Log a notice the first time, and note it in every report that it concerns."""
        if notice is None:
            return
        report.notices.append(notice)
        if notice not in self._told:
            logger.warning(notice)
            self._told.add(notice)


def _staged(
    method: SpatialMethod, call: Call, model_shift: float, sigmas: list[float], custom: bool
) -> tuple[Stage, ...]:
    """The stages of a call whose stock levels are `sigmas`; see `Acceleration.new_run`."""
    stages = method.stages(len(sigmas) - 1, model_shift)
    if custom:
        if (shifts := getattr(method, "shifts", "model")) != "model":
            raise ValueError(
                "custom sigmas= or timesteps= are not supported together with a plan that has shifts of its own: "
                f"{shifts=}; use shifts='model', whose stages are laid out along yours"
            )
        return redivided(stages, sigmas)
    if terminal := call.scheduler.config.shift_terminal:
        stages = (*stages[:-1], Stage(stages[-1].ratio, end_before_zero(stages[-1].sigmas, terminal)))
    return stages


def _geometry(pipe: Any, adapter: Adapter) -> Geometry:
    scale = pipe.vae_scale_factor_spatial if hasattr(pipe, "vae_scale_factor_spatial") else pipe.vae_scale_factor
    images = adapter.to_image, adapter.from_image, adapter.prediction_image
    return Geometry(*images, adapter.patch, adapter.patch * scale)


def _coarse_cost(call: Call, adapter: Adapter) -> float:
    """At most what a coarse step of the call costs in fine ones, by what its arguments say."""
    pixels, given = _geometry(call.pipe, adapter).pixels, call.given
    height, width = given.get("height"), given.get("width")
    if height is None or width is None:
        return UNKNOWN
    words = given.get("prompt_embeds")
    text = int(given.get("max_sequence_length") or 512) if words is None else words.shape[1]
    return coarse_cost(height * width / pixels**2, text + 77)  # and what other text encoders add


def _of_net(value: Any, number: int) -> Any:
    """What a ControlNet of several has of an argument that may be one for all."""
    return value[number] if isinstance(value, list | tuple) else value


def _reset_stock_caches(modules: list[Any]) -> None:
    """Caches of diffusers' own that the user enabled do not outlive a layout."""
    for module in modules:
        if hasattr(module, "_reset_stateful_cache"):
            module._reset_stateful_cache()


def _transformers(pipe: Any) -> list[Any]:
    """The denoiser or, of a pipeline that has one each for high and low noise levels (Wan 2.2), both."""
    second = getattr(pipe, "transformer_2", None)
    return [pipe.transformer] if second is None else [pipe.transformer, second]


def _controlnets(pipe: Any) -> list[Any]:
    controlnet = getattr(pipe, "controlnet", None)
    return list(getattr(controlnet, "nets", None) or ([controlnet] if controlnet is not None else []))


def _check(transformer: Any, family: type[Adapter], policy: Policy | None) -> None:
    """Raises RuntimeError, TypeError or ValueError for a denoiser that can't be accelerated as it is now."""
    if hasattr(transformer, "_orig_mod") or getattr(transformer, "_compiled_call_impl", None) is not None:
        raise RuntimeError(
            "the whole transformer was compiled, which compiles ralu_cache's hooks away; use "
            "transformer.compile_repeated_blocks() instead"
        )
    if not (isinstance(transformer, nn.Module) and family.matches(transformer)):
        raise TypeError(
            f"pipe.transformer is a {stock_of(type(transformer)).__name__} now, which the {family.family} adapter does "
            "not know; call accelerate(pipe, ...) again"
        )
    if policy is None:
        return
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError(
            f"diffusers' own {type(transformer._cache_config).__name__} is enabled on the transformer, and two caches "
            "do not stack; keep it with temporal=None, or call pipe.transformer.disable_cache() first"
        )
    blocks = family(transformer).blocks(transformer)
    if policy.caches != "stack" and any(getattr(block, "_compiled_call_impl", None) is not None for block in blocks):
        raise RuntimeError(
            "a temporal policy that reaches into the blocks (row-sparse recompute, layer caches) does not work in "
            "compiled ones, which would be compiled again and again; leave out compile_repeated_blocks(), or use "
            "teacache, seacache or taylorseer"
        )
