"""A linear model is integrated exactly: forecasts on a pipeline's own scheduler, of a denoiser whose answers are known.

Extrapolation along a line loses nothing of such a denoiser, so any difference is a wrong conversion or a wrong level.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ralu_cache import Forecast, accelerate
from ralu_cache.engine.steppers import kind_of, places_of
from ralu_cache.history.conversions import Reading

Model = Callable[[Tensor, Any], Tensor]
STEPS = 14
DIFFERENCES = ("PNDMScheduler",)  # which adds up differences of outputs: what is rounded adds up too


class LoopPipeline(DiffusionPipeline):
    """A loop over a scheduler's time steps, and nothing else."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        latents: Tensor,
        num_inference_steps: int = 12,
        eta: float = 0.0,
        callback_on_step_end: Any = None,
        step_arguments: Callable[[Any, Any], dict[str, Any]] = lambda scheduler, t: {},
    ) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps, **moved(self.scheduler))
        takes_eta = "eta" in inspect.signature(self.scheduler.step).parameters  # as pipelines look it up
        steps = {"eta": eta} if takes_eta else {}
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                output = model(self.scheduler.scale_model_input(latents, t), t) if hasattr(
                    self.scheduler, "scale_model_input") else model(latents, t)
                extra = steps | step_arguments(self.scheduler, t)
                latents = self.scheduler.step(output, t, latents, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, i, t, {"latents": latents}).pop("latents", latents)
                bar.update()
        return latents


class Linear:
    """A denoiser whose "clean" estimate, or whose "velocity", is `a + b level` whatever it is given.

    Its outputs are what the scheduler's kind of model would say; `asked` are the time steps at which it was called.
    """

    def __init__(self, scheduler: Any, steps: int, quantity: str, seed: int = 0) -> None:
        plain = copy.deepcopy(scheduler)
        plain.set_timesteps(steps, **moved(plain))
        full = {name: getattr(plain, name) for name in ("timesteps", "sigmas") if hasattr(plain, name)}
        self.places = dict(zip(full["timesteps"].tolist(), places_of(plain, full), strict=True))
        self.reading = Reading(kind_of(plain, full), quantity, float(plain.config.get("sigma_data", 1.0)))
        self.scheduler, self.asked = plain, list[float]()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = torch.randn(2, 1, 2, 3, generator=generator).unbind(0)
        self.scale = self.places[full["timesteps"][0].item()]
        self.latents = self.scale.alpha * self.a + self.scale.sigma * torch.randn(1, 2, 3, generator=generator)

    def __call__(self, latents: Tensor, t: Any) -> Tensor:
        self.asked.append(float(t))
        place = self.places[t.item()]
        return self.reading.output(place, self.unscaled(latents, place), self.a + self.b * place.share)

    def unscaled(self, latents: Tensor, place: Any) -> Tensor:
        """The sample, from what `scale_model_input` makes of it."""
        name = type(self.scheduler).__name__
        if name.startswith("EDM"):
            return latents * (place.sigma**2 + self.scheduler.config.sigma_data**2) ** 0.5
        scaled = name in ("EulerDiscreteScheduler", "LMSDiscreteScheduler")
        return latents * (place.sigma**2 + 1) ** 0.5 if scaled else latents


def moved(scheduler: Any) -> dict[str, float]:
    """What `set_timesteps` asks for where the levels depend on the size of the picture."""
    return {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}


def rounding(scheduler: Any) -> float:
    """Of the largest sample, in float32: what exactness leaves."""
    return 1e-4 if type(scheduler).__name__ in DIFFERENCES else 3e-6


def off_by(scheduler: Any, quantity: str, interval: int = 3, steps: int = STEPS, seed: int = 0) -> float:
    """How far the end of a run with forecasts is from stock's, a share of the largest sample.

    The denoiser's `quantity` is linear in the level from the second computed step on. Raises what `accelerate` does,
    and ValueError if no step was left out.
    """
    pipe = LoopPipeline(copy.deepcopy(scheduler))
    setting = Forecast(interval, ramp=False, first=3, gap=0.0, quantity=quantity)  # PNDM's third level is the second's
    accelerate(pipe, temporal=setting).disable()  # refuses before a model is asked for
    model = Linear(pipe.scheduler, steps, quantity, seed)
    expected, asked = pipe(model, model.latents, steps), len(model.asked)
    model.asked.clear()
    with accelerate(pipe, temporal=setting):
        found = pipe(model, model.latents, steps)
    if len(model.asked) >= asked:
        raise ValueError(f"{type(scheduler).__name__}: all {asked} steps were computed")
    return ((found - expected).abs().max() / model.latents.abs().max()).item()
