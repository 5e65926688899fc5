"""Steppers: what a scheduler's steps read in a model's output, by its class and options, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from ralu_cache.engine.disguise import stock_of
from ralu_cache.history.conversions import Place
from ralu_cache.history.solvers import ORDERS, Multistep

STEPPERS: Mapping[str, str] = {
    "FlowMatchEulerDiscreteScheduler": "flow",
    "EulerDiscreteScheduler": "noisy",
    "EDMEulerScheduler": "noisy",
    "DDIMScheduler": "trained",
    "DDIMParallelScheduler": "trained",
    "CogVideoXDDIMScheduler": "trained",
    "CogVideoXDPMScheduler": "trained",
    "TCDScheduler": "trained",
    "MiniMaxH3Scheduler": "flow",
    "UniPCMultistepScheduler": "unit",
    "DPMSolverMultistepScheduler": "unit",
    "DPMSolverSinglestepScheduler": "unit",
    "DEISMultistepScheduler": "unit",
    "EDMDPMSolverMultistepScheduler": "noisy",
    "LMSDiscreteScheduler": "noisy",
    "PNDMScheduler": "trained",
    "IPNDMScheduler": "angles",
}
"""The classes that are served, and how a sample stands at their levels: "flow", x = (1 - sigma) x0 + sigma n; "unit",
alpha^2 + sigma^2 = 1, told by sigma / alpha; "noisy", x = x0 + sigma n; "trained", unit ones told by the time step;
"angles", as IPNDM has them."""
_STOCHASTIC = {
    "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DDPMScheduler", "DDPMParallelScheduler",
    "DDPMWuerstchenScheduler", "LCMScheduler", "FlowMatchLCMScheduler", "SCMScheduler", "SASolverScheduler",
    "DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler",
    "LTXEulerAncestralRFScheduler", "UnCLIPScheduler", "RePaintScheduler", "ScoreSdeVeScheduler",
}  # fmt: skip
_SMALLEST = 1e-8
_NOT_STAGED = (
    "stochastic_sampling", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
)  # fmt: skip
_UNIPC: Mapping[str, tuple[Any, ...]] = {
    "prediction_type": ("flow_prediction",), "use_flow_sigmas": (True,), "solver_order": ORDERS,
    "solver_type": ("bh2",), "predict_x0": (True,), "thresholding": (False,), "disable_corrector": ([],),
    "solver_p": (None,), "final_sigmas_type": ("zero",), **dict.fromkeys(_NOT_STAGED, (None, False)),
}  # fmt: skip
NOISY_STEPS = (
    "CogVideoXDPMScheduler draws fresh noise at every step, which no forecast can know: pictures keep less of what "
    "they would be than with CogVideoXDDIMScheduler"
)


def levels_kind(scheduler: Any) -> str | None:
    """How samples stand at a scheduler's levels, by its class or the nearest one that it derives from."""
    names = (cls.__name__ for cls in stock_of(type(scheduler)).__mro__)
    return next((STEPPERS[name] for name in names if name in STEPPERS), None)


def is_staged(scheduler: Any) -> bool:
    """True of a scheduler on whose levels everything of ours works."""
    exactly = stock_of(type(scheduler)) is FlowMatchEulerDiscreteScheduler
    return exactly and not any(map(scheduler.config.get, _NOT_STAGED))


def is_flow_match_euler(scheduler: Any) -> bool:
    """True of flow-match Euler steps from sigma 1 down to 0: those that our own solvers can stand in for."""
    exactly = stock_of(type(scheduler)) is FlowMatchEulerDiscreteScheduler
    options = scheduler.config
    return exactly and not (
        options.get("stochastic_sampling") or options.get("invert_sigmas") or _highest(scheduler) > 1
    )


def _highest(scheduler: Any) -> float:
    """The level that levels of another spacing begin at, where a pipeline says so."""
    return float(scheduler.config.get("sigma_max") or 1.0)


def check_steps(scheduler: Any) -> None:
    """Raise TypeError or ValueError unless each step of a scheduler is one deterministic update by one model output."""
    name = stock_of(type(scheduler)).__name__
    accepted = f"accepted: {', '.join(STEPPERS)}"
    if not all(hasattr(scheduler, method) for method in ("set_timesteps", "step")):
        raise TypeError(f"scheduler {name} has no set_timesteps() and step(); {accepted}")
    if getattr(scheduler, "order", None) != 1:
        raise TypeError(f"scheduler {name} calls the model several times a step, forecasts need one; {accepted}")
    if name in _STOCHASTIC:
        raise TypeError(f"scheduler {name} draws fresh noise at every step, which no forecast can know; {accepted}")
    if levels_kind(scheduler) is None:
        raise TypeError(f"scheduler {name} steps in a way of its own; {accepted}")
    config = scheduler.config
    if str(config.get("algorithm_type")).startswith("sde"):
        raise ValueError(
            f"scheduler option algorithm_type={config['algorithm_type']!r} draws fresh noise at every step; "
            f"{name} is accepted with algorithm_type={config['algorithm_type'].removeprefix('sde-')!r}"
        )
    if config.get("stochastic_sampling"):
        raise ValueError("scheduler option stochastic_sampling=True draws fresh noise at every step; switch it off")
    if config.get("skip_prk_steps") is False:
        raise ValueError("scheduler option skip_prk_steps=False begins with Runge-Kutta steps; set it to True")


def check_flow_match_euler(scheduler: Any) -> None:
    """Raise TypeError or ValueError unless `scheduler` is a flow-match Euler one whose options can be staged."""
    if stock_of(type(scheduler)) is not FlowMatchEulerDiscreteScheduler:
        config = getattr(scheduler, "config", {})
        advice = ""
        if config.get("use_flow_sigmas"):  # the model predicts a flow
            advice = f": set pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift={config.get('flow_shift')})"
        raise TypeError(
            f"scheduler {stock_of(type(scheduler)).__name__} is not supported by this setting, which needs "
            f"FlowMatchEulerDiscreteScheduler{advice}; temporal='forecast' works with any of {', '.join(STEPPERS)}"
        )
    if (most := _highest(scheduler)) > 1:
        raise ValueError(
            f"scheduler option sigma_max={most} is not supported by this setting: it makes levels of noise that is "
            "added, this one needs flow-match levels from 1 to 0; temporal='forecast' without solver works"
        )
    for option in _NOT_STAGED:
        if scheduler.config.get(option):
            raise ValueError(f"scheduler option {option}={scheduler.config[option]!r} is not supported; switch it off")


def is_unipc(scheduler: Any) -> bool:
    """True of the scheduler that Wan comes with."""
    return stock_of(type(scheduler)) is UniPCMultistepScheduler


def check_unipc(scheduler: Any) -> None:
    """Raise ValueError unless a UniPC scheduler steps along flow levels, as our own solver does over stages."""
    for option, accepted in _UNIPC.items():
        if (value := scheduler.config.get(option)) not in accepted:
            raise ValueError(
                f"scheduler option {option}={value!r} of {UniPCMultistepScheduler.__name__} is not supported with "
                f"stages; accepted: {', '.join(map(repr, accepted))}"
            )


def own_solver(scheduler: Any) -> Multistep | None:
    """What makes a scheduler's steps where ours stand in for them: UniPC of its order; None for Euler's."""
    return Multistep(scheduler.config.solver_order) if is_unipc(scheduler) else None


def levels_of(scheduler: Any) -> list[float]:
    """The flow level of each of the stock steps, and the last one's end."""
    if is_staged(scheduler) or (is_unipc(scheduler) and scheduler.config.get("use_flow_sigmas")):
        return list(map(float, scheduler.sigmas.tolist()))
    full = {name: getattr(scheduler, name) for name in ("timesteps", "sigmas") if hasattr(scheduler, name)}
    return [*(place.share for place in places_of(scheduler, full)), 0.0]


def evenly_spaced(sigmas: Sequence[float]) -> bool:
    """True for the sigmas that pipelines fill in themselves: n levels from 1 to 1/n."""
    count = len(sigmas)
    levels = (1 - step / count for step in range(count))
    return all(abs(float(given) - level) <= 1e-6 + 1e-5 * level for given, level in zip(sigmas, levels, strict=True))


def notice_of(scheduler: Any) -> str | None:
    """What is to be said once of forecasts on a scheduler's steps."""
    return NOISY_STEPS if "CogVideoXDPMScheduler" in type(scheduler).__name__ else None


def check_eta(eta: Any) -> None:
    """Raise ValueError for steps that are told to draw noise."""
    if eta is not None and eta > 0:
        raise ValueError(f"eta={eta} draws fresh noise at every step, which no forecast can know; accepted: eta=0")


def kind_of(scheduler: Any, full: Mapping[str, Tensor]) -> str:
    """What the model predicts: see `ralu_cache.history.conversions.KINDS`. full: as for `places_of`."""
    config = scheduler.config
    name = stock_of(type(scheduler)).__name__
    if name == "MiniMaxH3Scheduler" or config.get("invert_sigmas"):
        return "data_velocity"
    if "FlowMatch" in name:
        return "epsilon" if _adds_noise(full["sigmas"]) else "flow_prediction"
    kind = "v_prediction" if name == "IPNDMScheduler" else str(config.get("prediction_type", "epsilon"))
    return f"edm_{kind}" if name.startswith("EDM") else kind.removeprefix("original_")


def places_of(scheduler: Any, full: Mapping[str, Tensor]) -> tuple[Place, ...]:
    """The noise level of every step. full: the stock schedule, "timesteps" and, of most, "sigmas"; read once."""
    kind, times = levels_kind(scheduler), full["timesteps"]
    if kind == "trained":
        kept = scheduler.alphas_cumprod.double().cpu()[times.long().cpu()]
        return _places(kept**0.5, (1 - kept) ** 0.5)
    if kind == "angles":
        return _places(scheduler.alphas[: len(times)], scheduler.betas[: len(times)])
    sigmas = full["sigmas"][: len(times)].double().cpu()
    if scheduler.config.get("invert_sigmas"):  # Mochi's rise
        return _places(sigmas, 1 - sigmas)
    if scheduler.config.get("use_flow_sigmas") or (kind == "flow" and not _adds_noise(sigmas)):
        return _places(1 - sigmas, sigmas)
    if kind == "unit":
        alphas = 1 / (sigmas**2 + 1) ** 0.5
        return _places(alphas, sigmas * alphas)
    return _places(torch.ones_like(sigmas), sigmas)


def _adds_noise(sigmas: Tensor) -> bool:
    """True of flow-match steps on levels above 1, which are those of x = x0 + sigma n (Cosmos 2)."""
    return bool(sigmas.max() > 1)


def _places(alphas: Tensor, sigmas: Tensor) -> tuple[Place, ...]:
    """The smallest of them stand for 0, which conversions divide by."""
    pairs = zip(alphas.tolist(), sigmas.tolist(), strict=True)
    return tuple(Place(max(alpha, _SMALLEST), max(sigma, _SMALLEST)) for alpha, sigma in pairs)
