"""Arguments of pipelines' calls that count steps of the loop, which makes fewer of them where steps are forecast.

`i < warmup_steps`, `i / num_inference_steps < share` or a list of one entry a step would mean other noise levels there.
What the pipelines of diffusers have of this kind is looked for in their source by `tests/test_counted.py`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Given = Mapping[str, Any]


def _in_force(given: Given) -> bool:
    return False


@dataclass(frozen=True)
class Counted:
    """What an argument may be in a loop of fewer steps.

    values: what means the same there, the first of them advised. steps: whether it is a number of steps, of which none
    and all mean the same too. idle: whether it has no effect in a call with these arguments. instead: other advice.
    """

    values: tuple[Any, ...] = ()
    steps: bool = False
    idle: Callable[[Given], bool] = _in_force
    instead: str = ""

    def allows(self, value: Any, given: Given, steps: int) -> bool:
        """Whether it may be `value` in a call with these arguments, of so many steps; a list has one for each thing."""
        if self.idle(given) or self._same(value, steps):
            return True
        return isinstance(value, list | tuple) and len(value) > 0 and all(self._same(one, steps) for one in value)

    def _same(self, value: Any, steps: int) -> bool:
        return value in self.values or (self.steps and isinstance(value, int) and not 0 < value < steps)

    @property
    def advice(self) -> str:
        """What to do instead of what is not allowed."""
        return self.instead or (f"give {self.values[0]!r}" if self.values else "")


def _constant(given: Given) -> bool:
    schedule = given["guidance_schedule"]
    return schedule is None or len({float(scale) for scale in schedule}) == 1


def _unguided(given: Given) -> bool:
    scale = given.get("guidance_scale")
    return scale is not None and scale <= 1


def _unsafe(given: Given) -> bool:
    return _unguided(given) or given.get("sld_guidance_scale", 0) <= 1


def _unedited(given: Given) -> bool:
    names = ("editing_prompt", "editing_prompt_embeds", "editing_prompt_embeddings")
    return all(given.get(name) is None or given[name] == "" for name in names)


COUNTED: Mapping[str, Counted] = {
    "control_guidance_start": Counted((0.0,)),
    "control_guidance_end": Counted((1.0,)),
    "skip_guidance_layers": Counted((None, [])),
    "adapter_conditioning_factor": Counted((1.0, 0.0)),
    "cfg_trunc_ratio": Counted((1.0, 0.0), idle=_unguided),
    "denoising_end": Counted((None, 0.0, 1.0)),
    "enable_temporal_reasoning": Counted((False,)),
    "ar_step": Counted((0,)),
    "t0": Counted(),
    "t1": Counted(),
    "guidance_schedule": Counted(idle=_constant, instead="give guidance_scale and guidance_schedule=None"),
    "use_dynamic_cfg": Counted((False,)),  # whose cosine goes over the number of steps
    "enforce_inference_steps": Counted((False,)),  # takes so many from the end
    "sld_warmup_steps": Counted((0,), steps=True, idle=_unsafe),
    "edit_warmup_steps": Counted((0,), steps=True, idle=_unedited),
    "edit_cooldown_steps": Counted((None,), steps=True, idle=_unedited),
    "sem_guidance": Counted((None,)),
    "max_iter_to_alter": Counted((0,)),  # how far latents are altered also goes by the number of the step
    "thresholds": Counted(({},), idle=lambda given: "max_iter_to_alter" not in given),
    "gligen_scheduled_sampling_beta": Counted((1.0, 0.0), idle=lambda given: "gligen_images" in given),
    "image_latents": Counted(idle=lambda given: "inpaint_strength" not in given),  # DiffEdit's, one for each step
    "start_step": Counted((0,)),
}
"""By its name, what each may be; the pipelines of diffusers agree on what a name means."""


def check_counted(pipe: Any, given: Given, steps: int) -> None:
    """Raise ValueError for what counts steps in a loop that makes fewer than `steps`, the stock schedule's.

    given: the arguments of the pipeline's call, with its defaults.
    """
    for name, counted in COUNTED.items():
        if name in given and not counted.allows(given[name], given, steps):
            ways = [way for way in (counted.advice, "compute every step (temporal=None)") if way]
            raise ValueError(
                f"{name}={reprlib.repr(given[name])} counts steps, and the pipeline's loop makes only those that are "
                f"computed; {', or '.join(ways)}"
            )
    if getattr(pipe, "free_init_enabled", False):
        raise ValueError(
            "enable_free_init() lays out as many steps again as the pipeline's loop makes, and it makes only those "
            "that are computed; call pipe.disable_free_init(), or compute every step (temporal=None)"
        )
