"""A pipeline that is nothing but a loop over a scheduler's time steps, and denoisers whose answers are known."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ralu_cache.engine.steppers import kind_of, places_of
from ralu_cache.history.conversions import Reading

Model = Callable[[Tensor, Any], Tensor]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-beta": ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
    "mochi": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "euler-sample": ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "edm": ("EDMEulerScheduler", {}),
    "edm-v": ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim-v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    "ddim-sample": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
    "ddim-parallel": ("DDIMParallelScheduler", {"clip_sample": False}),
    "cogvideo": ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                 "timestep_spacing": "trailing"}),
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "unipc-epsilon": ("UniPCMultistepScheduler", {}),
    "unipc-v": ("UniPCMultistepScheduler", {"prediction_type": "v_prediction", "solver_order": 3}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-flow": ("DPMSolverMultistepScheduler", FLOW),
    "dpm-v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "edm-dpm": ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ipndm": ("IPNDMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "minimax": ("MiniMaxH3Scheduler", {}),
}  # fmt: skip


def scheduler_of(name: str) -> Any:
    cls, options = SCHEDULERS[name]
    return getattr(diffusers, cls)(**options)


class LoopPipeline(DiffusionPipeline):
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
        denoising_end: float | None = None,
        callback_on_step_end: Any = None,
        step_arguments: Callable[[Any, Any], dict[str, Any]] = lambda scheduler, t: {},
    ) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
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
        plain.set_timesteps(steps)
        full = {name: getattr(plain, name) for name in ("timesteps", "sigmas") if hasattr(plain, name)}
        self.places = dict(zip(full["timesteps"].tolist(), places_of(plain, full), strict=True))
        self.reading = Reading(kind_of(plain), quantity, float(plain.config.get("sigma_data", 1.0)))
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
