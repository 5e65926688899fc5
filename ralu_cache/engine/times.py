"""Time steps of a schedule in the forms in which pipelines give them: numbers, or tensors with one for each sample.

times: those of a schedule as numbers, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def first_below(times: Sequence[float], level: float) -> int | None:
    """The first place whose time is below a level; None where there is none."""
    return next((place for place, time in enumerate(times) if time < level), None)


def number(t: Any) -> float:
    """The time that a pipeline gives; waits for the device where it is there."""
    return float(t.flatten()[0]) if torch.is_tensor(t) else float(t)


def is_at(place: int, times: Sequence[float], t: Any) -> bool:
    """True if of all times that of a place is nearest to a pipeline's `t`."""
    value = number(t)
    return min(times, key=lambda time: abs(time - value)) == times[place]


def in_form_of(like: Any, place: int, times: Sequence[float], timesteps: Tensor) -> Any:
    """The time of a place as a pipeline would give it, `like` another one. timesteps: (n,), the same as `times`."""
    if not torch.is_tensor(like):
        return type(like)(times[place])
    return timesteps[place].to(like.device, like.dtype).expand(like.shape)


def times_at(levels: Tensor, sigmas: Tensor, timesteps: Tensor, most: float) -> Tensor:
    """The time of each of some levels (k,), in the form of the stock `timesteps` (n,), those of `sigmas` (n + 1,).

    A level's share of `most`; where a pipeline gives times beside its levels, which are shifted and those not
    (CogView4), between the times of the stock levels around it, and 0 at 0.
    """
    plain = levels * most
    known, times = sigmas[: len(timesteps)].tolist(), timesteps.tolist()
    if all(abs(sigma * most - time) <= most / 1000 for sigma, time in zip(known, times, strict=True)):
        return plain.to(timesteps.dtype)
    between = np.interp(levels.tolist(), [0.0, *reversed(known)], [0.0, *reversed(times)])
    return torch.tensor(between, dtype=timesteps.dtype, device=timesteps.device)
