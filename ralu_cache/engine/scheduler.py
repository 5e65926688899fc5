"""The scheduler that a pipeline finds within a call: a copy of its own, of a class that lays out stages.

The copy's class is a disguised subclass of the stock one: where the call has no run, every method is the stock one.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from ralu_cache.engine.disguise import disguised, stock_of
from ralu_cache.engine.run import Run

_CALL = "_ralu_cache_call"
_UNSUPPORTED = (
    "stochastic_sampling", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
)  # fmt: skip


def check_scheduler(scheduler: Any) -> None:
    """Raise TypeError or ValueError unless `scheduler` is a flow-match Euler scheduler whose options can be staged."""
    if stock_of(type(scheduler)) is not FlowMatchEulerDiscreteScheduler:
        shift = getattr(scheduler, "config", {}).get("flow_shift")
        advice = "" if shift is None else f": set pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift={shift})"
        raise TypeError(
            f"scheduler {type(scheduler).__name__} is not supported; ralu_cache needs FlowMatchEulerDiscreteScheduler"
            f"{advice}"
        )
    for option in _UNSUPPORTED:
        if scheduler.config.get(option):
            raise ValueError(f"scheduler option {option}={scheduler.config[option]!r} is not supported; switch it off")


def staged(scheduler: Any, call: Any) -> Any:
    """A copy of the user's scheduler for one call, which asks the call for its run. The call is not kept alive."""
    mine = copy.copy(scheduler)
    mine.__class__ = _staged_class(stock_of(type(scheduler)))
    vars(mine)[_CALL] = weakref.ref(call)
    return mine


def release(scheduler: Any) -> None:
    """Make a call's scheduler a stock one, for whoever still holds it."""
    scheduler.__class__ = stock_of(type(scheduler))
    vars(scheduler).pop(_CALL, None)


def model_shift(scheduler: Any, mu: float | None) -> float:
    """The factor s in sigma' = s sigma / (1 + (s - 1) sigma) that the stock scheduler applies."""
    if not scheduler.config.use_dynamic_shifting:
        return float(scheduler.shift)
    if mu is None:
        raise ValueError("`mu` must be passed when `use_dynamic_shifting` is set to be `True`")
    return math.exp(mu) if scheduler.config.time_shift_type == "exponential" else float(mu)


def lay_out(scheduler: Any, run: Run) -> None:
    """Show the pipeline the levels of the run's stages."""
    device = scheduler.timesteps.device
    scheduler.sigmas = torch.tensor(run.levels(), dtype=torch.float32, device=device)
    scheduler.timesteps = scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps
    scheduler.num_inference_steps = len(scheduler.timesteps)


def _call(scheduler: Any) -> Any:
    reference = vars(scheduler).get(_CALL)
    call = None if reference is None else reference()
    return None if call is None or call.over else call


def _run(scheduler: Any) -> Run | None:
    call = _call(scheduler)
    return None if call is None else call.run


@cache
def _staged_class(stock: type) -> type:
    methods = {"set_timesteps": _set_timesteps, "set_begin_index": _set_begin_index, "scale_noise": _scale_noise}
    body: dict[str, Any] = {name: make(stock) for name, make in (methods | {"step": _step}).items()}
    return disguised(stock, **body, run=property(_run))


def _set_timesteps(stock: Any) -> Callable[..., None]:
    @wraps(stock.set_timesteps)
    def set_timesteps(
        self: Any,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        stock.set_timesteps(self, num_inference_steps, device, sigmas, mu, timesteps)
        if (call := _call(self)) is None:
            return
        custom = timesteps is not None or (sigmas is not None and not _evenly_spaced(sigmas))
        call.stock_timesteps = self.timesteps
        run = call.begin(model_shift(self, mu), self.sigmas.tolist(), custom)
        if run is None:
            return
        self._begin_index = 0
        if sigmas is None and timesteps is None:  # then pipelines go on with the number of steps they asked for
            run.believed_steps = num_inference_steps
        if run.lays_out:
            lay_out(self, run)

    return set_timesteps


def _set_begin_index(stock: Any) -> Callable[..., None]:
    @wraps(stock.set_begin_index)
    def set_begin_index(self: Any, begin_index: int = 0) -> None:
        stock.set_begin_index(self, begin_index)
        run = _run(self)
        if run is None or run.index or not 0 < begin_index < run.stock.steps:
            return
        if run.method is None:
            run.start_at(begin_index)
        else:
            run.enter_at(begin_index)
        if run.lays_out:
            lay_out(self, run)
            stock.set_begin_index(self, 0)

    return set_begin_index


def _scale_noise(stock: Any) -> Callable[..., Tensor]:
    @wraps(stock.scale_noise)
    def scale_noise(self: Any, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """Forward process on the tokens of the stage in which the run stands; latents as images, or packed."""
        run = _run(self)
        if run is None or run.method is None or noise is None:
            return stock.scale_noise(self, sample, timestep, noise)
        packed = sample.ndim == 3
        if run.grid is None and packed:
            raise ValueError(f"scale_noise before the first step needs latents (B, C, H, W), got {tuple(sample.shape)}")
        grid = run.grid if packed else (0, 0)
        assert grid is not None
        to_image, from_image = run.geometry.to_image, run.geometry.from_image
        return from_image(run.add_noise(to_image(sample, grid), to_image(noise, grid)), sample).to(sample.dtype)

    return scale_noise


def _step(stock: Any) -> Callable[..., Any]:
    @wraps(stock.step)
    def step(
        self: Any,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the stock method. RuntimeError if the denoiser's hook did not run, ValueError for per-token timesteps."""
        call = _call(self)
        run: Run | None = None if call is None else call.run
        noise = s_churn, s_tmin, s_tmax, s_noise
        given = (model_output, timestep, sample, *noise, generator, per_token_timesteps, return_dict)
        if call is None or run is None:
            return stock.step(self, *given)
        if per_token_timesteps is not None:
            raise ValueError("per_token_timesteps are not supported once accelerated; call handle.disable() first")
        if not run.asked:
            raise RuntimeError(
                "the denoiser ran without ralu_cache's hook (it was replaced within the call, its hooks were removed, "
                "or it ran in a thread that does not have the call's context); call accelerate(pipe, ...) again"
            )
        run.settle(sample.shape[0])
        if run.method is None and run.prediction is None:
            output = stock.step(self, *given)
            previous = output.prev_sample if return_dict else output[0]
            run.close_step(previous)
        else:
            previous = run.advance(model_output, sample, lambda: stock.step(self, *given[:-1], False)[0])
            self._step_index = run.shown_index if run.lays_out else run.index
            output = FlowMatchEulerDiscreteSchedulerOutput(prev_sample=previous) if return_dict else (previous,)
        call.stepped(run)
        return output

    return step


def _evenly_spaced(sigmas: list[float]) -> bool:
    """True for the sigmas that pipelines fill in themselves: n levels from 1 to 1/n."""
    given = torch.as_tensor(sigmas, dtype=torch.float64)
    return torch.allclose(given, torch.linspace(1.0, 1.0 / len(given), len(given), dtype=torch.float64), atol=1e-6)
