"""The guider that a pipeline finds within a call: a copy of its own, which counts steps of the stock schedule.

diffusers' guiders (`ClassifierFreeGuidance(start=0.2, stop=0.8)`) hold the state of one run, and are told of each step
of the loop by its number: an interval of theirs means noise levels, wherever a run has steps of its own.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from ralu_cache.engine.disguise import disguised, stock_of

_CALL = "_ralu_cache_call"


def counting(guider: Any, call: Any) -> Any:
    """A copy of the user's guider for one call, which is not kept alive."""
    mine = copy.copy(guider)
    mine.__class__ = _counting_class(stock_of(type(guider)))
    vars(mine)[_CALL] = weakref.ref(call)
    return mine


@cache
def _counting_class(stock: Any) -> type:
    return disguised(stock, set_state=_set_state(stock))


def _set_state(stock: Any) -> Callable[..., None]:
    @wraps(stock.set_state)
    def set_state(self: Any, step: int, num_inference_steps: int, timestep: Any) -> None:
        call = vars(self)[_CALL]()
        run = None if call is None or call.over else call.under_way
        if run is None:
            stock.set_state(self, step, num_inference_steps, timestep)
            return
        before = self.num_conditions
        stock.set_state(self, run.stock_step, run.stock.steps, timestep)
        if self.num_conditions != before:
            call.forget()

    return set_state
