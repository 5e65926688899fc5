"""accelerate(): install an acceleration on a stock pipeline, and undo it."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

from torch import nn

from ralu_cache.adapters.base import find_adapter
from ralu_cache.autoencoder import autoencoder_of
from ralu_cache.blocks import BlockStack
from ralu_cache.coefficients import Settled, settle
from ralu_cache.hooks import RootHook, installed_owner
from ralu_cache.progress import TrueProgress
from ralu_cache.recommended import for_speedup, shipped
from ralu_cache.report import Report
from ralu_cache.run import Geometry, Run
from ralu_cache.schedule import end_before_zero
from ralu_cache.scheduler import StagedFlowMatchEuler, check_scheduler
from ralu_cache.spatial import SpatialMethod, Stage, resolve_spatial
from ralu_cache.temporal import Policy, resolve_temporal

logger = logging.getLogger("ralu_cache")


def accelerate(
    pipe: Any,
    spatial: str | SpatialMethod | None = None,
    temporal: str | Policy | None = None,
    speedup: str | float | None = None,
) -> Acceleration:
    """Make a stock diffusers pipeline faster in place; the call stays ``pipe(prompt, ...)``.

    spatial: None, "ralu" (the family's default plan), "ralu-4x", "ralu-5x", "ralu-7x", "ralu-2x", "ralu-3x", the name
        of a registered method, or a `RALU(...)`.
    temporal: None, "teacache", "seacache", "taylorseer", "toca", "adaptive", each with its main setting after a colon
        if wanted ("teacache:0.4"), the name of a registered policy, or a config such as `SeaCache(threshold=0.3)`.
        Together with `spatial` the first step of every stage is computed, for nothing that was cached can stand for it,
        but each token goes on along the trend that it, or the one that it was split from, had before: at the same cost
        that was 0.6 to 1.6 dB closer to the uncached plan than forgetting (`benchmarks/results/composition`).
    speedup: instead of both, 4 or "4x": the slowest setting that was measured to be at least that much faster, for
        the pipeline's family; another model, size or machine gains more or less. Where it wants another
        `num_inference_steps` than a call brings, that is logged once, and stands in the report.

    Returns the handle: `report`, `disable()`, and a context manager that disables on exit. A second call replaces the
    first, it never stacks. Raises TypeError for an unsupported pipeline or scheduler and ValueError for an unknown
    method or option; each names what was given and what is accepted.
    """
    if speedup is not None and (spatial is not None or temporal is not None):
        raise ValueError(f"speedup={speedup!r} chooses both; leave out spatial={spatial!r} and temporal={temporal!r}")
    adapter, steps = find_adapter(pipe), None
    if speedup is not None:
        entry = for_speedup(shipped(adapter.family), speedup, adapter.family)
        spatial, temporal, steps = entry.spatial, entry.temporal, entry.steps if entry.spatial is None else None
    names = (adapter.default_preset if spatial == "ralu" else spatial, temporal)
    plan, label = ("none" if name is None else name if isinstance(name, str) else repr(name) for name in names)
    settled = settle(resolve_temporal(temporal), label, pipe.transformer, adapter.family, plan)
    method = resolve_spatial(spatial, adapter.default_preset)
    stock = pipe.scheduler.stock if isinstance(pipe.scheduler, StagedFlowMatchEuler) else pipe.scheduler
    check_scheduler(stock)
    for transformer in _transformers(pipe):
        _check_not_compiled(transformer)
        if settled.policy is not None:
            _check_not_cached(transformer)
    if (previous := installed_owner(pipe.transformer)) is not None:
        previous.disable()
    pipe.scheduler = stock
    return Acceleration(pipe, adapter, method, plan, settled, steps)


class Acceleration:
    """The handle of an accelerated pipeline: its report, and the way back to the stock pipeline."""

    def __init__(
        self,
        pipe: Any,
        adapter: Any,
        method: SpatialMethod | None,
        plan: str,
        temporal: Settled,
        steps: int | None = None,
    ) -> None:
        """plan: the method's name. steps: those that the setting was measured with; others are worth a notice."""
        self._steps = steps
        self._pipe, self._adapter, self._method, self._plan = pipe, adapter, method, plan
        self._policy, self._temporal = temporal.policy, temporal
        self._report: Report | None = None
        self._told: set[str] = set()
        scale = pipe.vae_scale_factor_spatial if hasattr(pipe, "vae_scale_factor_spatial") else pipe.vae_scale_factor
        self._geometry = Geometry(
            adapter.to_image, adapter.from_image, adapter.prediction_image, adapter.patch, adapter.patch * scale
        )
        self._autoencoder = autoencoder_of(pipe)
        self._scheduler = StagedFlowMatchEuler.staged(pipe.scheduler, self._new_run)
        self._hooks = self._install(pipe)
        pipe.scheduler = self._scheduler

    @property
    def report(self) -> Report | None:
        """What the latest pipeline call did (`completed` is False if it was cut short); None before the first."""
        return self._report

    @property
    def enabled(self) -> bool:
        return bool(self._hooks)

    def disable(self) -> None:
        """Give back the stock pipeline, bit for bit. Calling it again does nothing."""
        self._scheduler.release()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._pipe.scheduler is self._scheduler:
            self._pipe.scheduler = self._scheduler.stock

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()

    def current_run(self) -> Run | None:
        """The run under way. Raises RuntimeError if the pipeline's scheduler is no longer ours."""
        if self._pipe.scheduler is not self._scheduler:
            raise RuntimeError(
                f"pipe.scheduler was replaced by a {type(self._pipe.scheduler).__name__} after accelerate(); call "
                "handle.disable(), or accelerate(pipe, ...) again, which keeps the new scheduler's settings"
            )
        return self._scheduler.run

    def drop_run(self) -> None:
        """Forget the run under way, and free what it holds."""
        self._scheduler.run = None

    def _install(self, pipe: Any) -> list[Any]:
        hooks: list[Any] = []
        try:
            for transformer in _transformers(pipe):
                adapter = type(self._adapter)(transformer)
                stack = None if self._policy is None else BlockStack(transformer, adapter, self._policy)
                hooks.append(RootHook(transformer, adapter, self, stack))
                if self._method is not None and "text_attention" in self._method.scorer.needs:
                    hooks += adapter.install_text_attention(transformer, self.current_run)
        except BaseException:  # what refuses leaves nothing behind
            for hook in hooks:
                hook.remove()
            raise
        hooks += [RootHook(net, self._adapter, self, reduce_only=True) for net in _controlnets(pipe)]
        return [*hooks, TrueProgress(pipe, lambda: self._scheduler.run)]

    def _new_run(self, model_shift: float, sigmas: list[float], custom: bool) -> Run | None:
        """See `ralu_cache.scheduler.NewRun`; what is refused is refused before there is a report of it."""
        for transformer in _transformers(self._pipe):
            _check_not_compiled(transformer)
            if self._policy is not None and self._policy.caches != "stack":
                _check_blocks_not_compiled(self._adapter.blocks(transformer))
        if self._method is None and self._policy is None:
            return None
        if self._method is not None and custom:
            raise ValueError(
                "custom sigmas= or timesteps= are not supported together with spatial stages, which lay out their own; "
                "set the plan instead: spatial=RALU(steps=..., ends=...)"
            )
        num_inference_steps = len(sigmas) - 1
        self._report = Report(
            pipeline=type(self._pipe).__name__, spatial=self._plan, temporal=self._temporal.name,
            baseline_steps=num_inference_steps,
        )  # fmt: skip
        self._tell(self._temporal.notice)
        if self._steps not in (None, num_inference_steps):
            self._tell(
                f"this setting's speed-up was measured with num_inference_steps={self._steps}, not "
                f"{num_inference_steps}; pass that number to the call"
            )
        stages: tuple[Stage, ...] = (Stage(1.0, tuple(sigmas)),)
        if self._method is not None:
            stages = self._method.stages(num_inference_steps, model_shift)
            if terminal := self._scheduler.config.shift_terminal:
                stages = (*stages[:-1], Stage(stages[-1].ratio, end_before_zero(stages[-1].sigmas, terminal)))
            self._tell(self._method.overrides(num_inference_steps))
        self._reset_stock_caches()
        return Run(
            self._method, stages, self._geometry, self._autoencoder, self._report, self._policy,
            self._reset_stock_caches,
        )  # fmt: skip

    def _reset_stock_caches(self) -> None:
        """Caches of diffusers' own that the user enabled do not outlive a layout."""
        for module in (*_transformers(self._pipe), *_controlnets(self._pipe)):
            if hasattr(module, "_reset_stateful_cache"):
                module._reset_stateful_cache()

    def _tell(self, notice: str | None) -> None:
        """Log a notice the first time, and note it in every report that it concerns."""
        if notice is None or self._report is None:
            return
        self._report.notices.append(notice)
        if notice not in self._told:
            logger.warning(notice)
            self._told.add(notice)


def _transformers(pipe: Any) -> list[Any]:
    """The denoiser or, of a pipeline that has one each for high and low noise levels (Wan 2.2), both."""
    second = getattr(pipe, "transformer_2", None)
    return [pipe.transformer] if second is None else [pipe.transformer, second]


def _controlnets(pipe: Any) -> list[Any]:
    controlnet = getattr(pipe, "controlnet", None)
    return list(getattr(controlnet, "nets", None) or ([controlnet] if controlnet is not None else []))


def _check_not_compiled(transformer: nn.Module) -> None:
    if getattr(transformer, "_compiled_call_impl", None) is not None:
        raise RuntimeError(
            "the whole transformer was compiled in place, which compiles ralu_cache's hooks away; use "
            "transformer.compile_repeated_blocks() instead"
        )


def _check_blocks_not_compiled(blocks: list[nn.Module]) -> None:
    """What runs inside them differs from call to call, which would compile them again and again."""
    if any(getattr(block, "_compiled_call_impl", None) is not None for block in blocks):
        raise RuntimeError(
            "a temporal policy that reaches into the blocks (row-sparse recompute, layer caches) does not work in "
            "compiled ones; leave out compile_repeated_blocks(), or use teacache, seacache or taylorseer"
        )


def _check_not_cached(transformer: Any) -> None:
    """Both would wrap the blocks, and diffusers' hooks cannot be taken out from under others."""
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError(
            f"diffusers' own {type(transformer._cache_config).__name__} is enabled on the transformer, and two caches "
            "do not stack; keep it with temporal=None, or call pipe.transformer.disable_cache() first"
        )
