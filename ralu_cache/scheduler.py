"""StagedFlowMatchEuler: the stock flow-match Euler scheduler with stages of different token layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from ralu_cache.known import Known
from ralu_cache.run import Run

NewRun = Callable[[float, list[float], bool], Run | None]
"""From the model's shift, the stock levels and whether the caller gave levels of its own; None runs as stock."""

_UNSUPPORTED = (
    "stochastic_sampling", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
)  # fmt: skip


def check_scheduler(scheduler: Any) -> None:
    """Raise TypeError or ValueError unless `scheduler` is a flow-match Euler scheduler whose options can be staged."""
    if type(scheduler) is not FlowMatchEulerDiscreteScheduler:
        shift = getattr(scheduler, "config", {}).get("flow_shift")
        advice = "" if shift is None else f": set pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift={shift})"
        raise TypeError(
            f"scheduler {type(scheduler).__name__} is not supported; ralu_cache needs FlowMatchEulerDiscreteScheduler"
            f"{advice}"
        )
    for option in _UNSUPPORTED:
        if scheduler.config.get(option):
            raise ValueError(f"scheduler option {option}={scheduler.config[option]!r} is not supported; switch it off")


class StagedFlowMatchEuler(FlowMatchEulerDiscreteScheduler):
    """Lays out staged sigmas in `set_timesteps`, advances the canvas in `step`, enters img2img through `scale_noise`.

    With no `new_run`, or with one that returns None, every method is the stock one. The schedule is not monotone
    (a transition raises sigma), so the step index counts from `begin_index` and is never searched.
    """

    stock: FlowMatchEulerDiscreteScheduler
    timesteps: Tensor
    sigmas: Tensor
    new_run: NewRun | None = None
    run: Run | None = None

    @classmethod
    def staged(cls, stock: FlowMatchEulerDiscreteScheduler, new_run: NewRun) -> StagedFlowMatchEuler:
        """A scheduler with the settings of `stock` that asks `new_run` for a run of every call."""
        scheduler = cls.from_config(stock.config)
        scheduler.set_shift(stock.shift)
        scheduler.stock, scheduler.new_run = stock, new_run
        return scheduler

    def release(self) -> None:
        """Become a stock scheduler, for pipelines that share this object."""
        self.new_run = self.run = None

    def model_shift(self, mu: float | None) -> float:
        """The factor s in sigma' = s sigma / (1 + (s - 1) sigma) that the stock scheduler applies."""
        if not self.config.use_dynamic_shifting:
            return float(self.shift)
        if mu is None:
            raise ValueError("`mu` must be passed when `use_dynamic_shifting` is set to be `True`")
        return math.exp(mu) if self.config.time_shift_type == "exponential" else float(mu)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As the stock method, but with the levels of the stages. Raises ValueError for custom sigmas or timesteps."""
        self.run = None
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        if self.new_run is None:
            return
        custom = timesteps is not None or (sigmas is not None and not _evenly_spaced(sigmas))
        run = self.new_run(self.model_shift(mu), self.sigmas.tolist(), custom)
        if run is None:
            return
        self._begin_index = 0
        self.run = run
        if sigmas is None and timesteps is None:  # then pipelines go on with the number of steps they asked for
            run.believed_steps = num_inference_steps
        if run.method is not None:
            levels = [level for stage in run.stages for level in stage.sigmas[:-1]]
            self.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32, device=device)
            self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
            self.num_inference_steps = len(levels)
        self.timesteps = Known.of(self.timesteps, self.timesteps.cpu())  # the root hooks ask which level a call has

    def set_begin_index(self, begin_index: int = 0) -> None:
        """As the stock method. Raises ValueError for a start that was counted on another number of steps than ours."""
        run = self.run
        if run is not None and begin_index and run.believed_steps not in (None, len(run.places)):
            steps, self.run = len(run.places), None
            raise ValueError(
                f"strength < 1 with num_inference_steps={run.believed_steps} is not supported: the plan takes {steps} "
                f"steps, and this pipeline would start at the wrong one; pass num_inference_steps={steps}, or divide "
                "your own steps with RALU(split=...)"
            )
        super().set_begin_index(begin_index)
        if self.run is not None:
            self.run.index = begin_index

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """Forward process on the tokens of the stage in which the run stands; latents as images, or packed."""
        run = self.run
        if run is None or run.method is None or noise is None:
            return super().scale_noise(sample, timestep, noise)
        packed = sample.ndim == 3
        if run.grid is None and packed:
            raise ValueError(f"scale_noise before the first step needs latents (B, C, H, W), got {tuple(sample.shape)}")
        grid = run.grid if packed else (0, 0)
        assert grid is not None
        to_image, from_image = run.geometry.to_image, run.geometry.from_image
        with self._dropping_what_fails():
            return from_image(run.add_noise(to_image(sample, grid), to_image(noise, grid)), sample).to(sample.dtype)

    def step(
        self,
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
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """As the stock method. RuntimeError if the denoiser's hook did not run, ValueError for per-token timesteps."""
        run = self.run
        churn = (s_churn, s_tmin, s_tmax, s_noise)
        stock = (model_output, timestep, sample, *churn, generator, per_token_timesteps, return_dict)
        if run is None:
            return super().step(*stock)
        if per_token_timesteps is not None:
            raise ValueError("per_token_timesteps are not supported once accelerated; call handle.disable() first")
        if run.calls == 0:
            self.run = None
            raise RuntimeError(
                "the denoiser ran without ralu_cache's hook (it was replaced, or its hooks were removed, after "
                "accelerate()); call accelerate(pipe, ...) again"
            )
        with self._dropping_what_fails():
            run.settle(sample.shape[0])
            if run.method is None:
                output = super().step(*stock)
                run.close_step()
            else:
                previous = run.advance(model_output, sample)
                self._step_index = run.index
                output = FlowMatchEulerDiscreteSchedulerOutput(prev_sample=previous) if return_dict else (previous,)
        if run.finished:
            self.run = None
        return output

    def _reset_stateful_cache(self) -> None:
        """Pipelines call this on their components at their end, so that a run which was stopped early ends there."""
        self.run = None

    @contextmanager
    def _dropping_what_fails(self) -> Iterator[None]:
        """A run whose arithmetic fails, say in a transition or a scorer, is over: free what it holds."""
        try:
            yield
        except BaseException:
            self.run = None
            raise

    def save_pretrained(self, save_directory: str, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the stock scheduler with the same configuration, so that a saved pipeline loads without this library."""
        FlowMatchEulerDiscreteScheduler.from_config(self.config).save_pretrained(save_directory, push_to_hub, **kwargs)


def _evenly_spaced(sigmas: list[float]) -> bool:
    """True for the sigmas that pipelines fill in themselves: n levels from 1 to 1/n."""
    given = torch.as_tensor(sigmas, dtype=torch.float64)
    return torch.allclose(given, torch.linspace(1.0, 1.0 / len(given), len(given), dtype=torch.float64), atol=1e-6)
