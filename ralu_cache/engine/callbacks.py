"""How a caller's callbacks are called: outside of the run, and once for each step of the stock schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ralu_cache.adapters.lora import loras
from ralu_cache.adapters.probed import tensors_in
from ralu_cache.engine.context import Pause, call_of, entered
from ralu_cache.engine.identity import Identity


def paused(callback: Any, pipe: Any) -> Callable[..., Any]:
    """Outside of the run of this pipeline's call; what is reused begins anew where the callback changed LoRAs."""

    def call_back(*args: Any, **kwargs: Any) -> Any:
        pause, had = Pause(), loras(pipe)
        with entered(pause):
            given = callback(*args, **kwargs)
        if loras(pipe) != had and (call := call_of(pipe)) is not None:
            call.forget(residuals=True)
        return given

    return call_back


def told(callback: Any, pipe: Any, interrupts: bool) -> Callable[..., Mapping[str, Any]]:
    """`callback_on_step_end`, called once for each step of the stock schedule, as soon as the run has passed it.

    So what it does at a step, or at a share of them, it does at the noise level that this means in the stock call. A
    step of the run may pass none of them, or several; those after an interrupt are not told. interrupts: the pipeline
    knows such; else it ignores that attribute, whoever set it once.
    """
    tell = paused(callback, pipe)

    def call_back(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> Mapping[str, Any]:
        call = call_of(pipe)
        if call is None or call.stock is None:
            return tell(pipe, index, timestep, tensors)
        if "_num_timesteps" in call.own:
            call.own["_num_timesteps"] = call.stock.steps
        levels = call.levels_like(timestep)
        while call.told < call.passed and not (interrupts and getattr(pipe, "_interrupt", False)):
            step, call.told = call.told, call.told + 1
            level = levels[call.stock.entry + step]
            before = Identity.of((), dict(tensors_in(_but_latents(tensors))), (), watched=True)
            tensors = {**tensors, **(tell(pipe, step, level, tensors) or {})}
            if call.run is None and not before.is_still((), dict(tensors_in(_but_latents(tensors))), ()):
                call.forget()  # the hooks of a run in the model see for themselves
        return tensors

    return call_back


def _but_latents(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What a callback sees beside the latents: the conditions of the model's calls."""
    return {name: value for name, value in tensors.items() if name != "latents"}
