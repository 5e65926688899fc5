"""The class that an accelerated pipeline wears: its calls are `Call`s, and its scheduler and state are the call's.

Outside of a call every attribute is the user's own; within one, in its context, it is the call's.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from functools import cache, wraps
from types import MethodType
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ralu_cache.engine.attributes import components, guider, of_the_call, stored
from ralu_cache.engine.callbacks import paused, told
from ralu_cache.engine.context import call_of
from ralu_cache.engine.disguise import disguised, stock_of
from ralu_cache.engine.scheduler import lay_out, whole
from ralu_cache.engine.scheduler_run import SHOWN

HANDLE = "_ralu_cache_handle"  # in the instance: a class is a reference cycle, and may be shared
_SHARED = {"_interrupt"}  # what is set from outside


def wear(pipe: Any, handle: Any) -> None:
    """Make the pipeline an accelerated one, whose calls belong to `handle`."""
    vars(pipe)[HANDLE] = handle
    pipe.__class__ = _pipeline_class(stock_of(type(pipe)))


def undress(pipe: Any, handle: Any) -> None:
    """Make it a stock one again, unless another handle has it by now."""
    if vars(pipe).get(HANDLE) is handle:
        pipe.__class__ = stock_of(type(pipe))
        del vars(pipe)[HANDLE]


def handle_of(pipe: Any) -> Any:
    """The handle of an accelerated pipeline, or None."""
    return vars(pipe).get(HANDLE)


@cache
def _pipeline_class(stock: Any) -> type:
    stores = stored(stock)
    private = {name for name in stores if name.startswith("_")} - _SHARED
    body: dict[str, Any] = {name: of_the_call(stock, name) for name in private | {"scheduler"}}
    body["components"] = components(stock)
    parts = inspect.signature(stock.__init__).parameters
    body |= {name: guider(name) for name in parts if name.endswith("guider")}  # also HunyuanImage's ocr_guider
    if hasattr(stock, "get_timesteps"):
        body["get_timesteps"] = _get_timesteps(stock)
    call = _accelerated(stock.__call__, not _SHARED.isdisjoint(stores))
    return disguised(
        stock, **body, __call__=call, progress_bar=_progress_bar(stock),
        __reduce_ex__=_reduce, __setstate__=_revive,
    )  # fmt: skip


def _accelerated(stock_call: Any, interrupts: bool) -> Callable[..., Any]:
    """`stock_call` within a `Call`; so is what it wraps (without no_grad, say). interrupts: see `told`."""
    signature = inspect.signature(stock_call)
    defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}

    @wraps(stock_call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        handle = vars(self).get(HANDLE)
        if handle is None or not handle.enabled:
            return stock_call(self, *args, **kwargs)
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            return stock_call(self, *args, **kwargs)  # which says what is wrong
        given = defaults | {name: value for name, value in bound.arguments.items() if name != "self"}
        for name in ("callback_on_step_end", "callback"):
            if (callback := given.get(name)) is None:
                continue
            if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):  # stock asks for the class
                bound.arguments["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
            bound.arguments[name] = (
                told(callback, self, interrupts) if name == "callback_on_step_end" else paused(callback, self)
            )
        with handle.call(self, **given):
            result = stock_call(*bound.args, **bound.kwargs)
            if (call := call_of(self)) is not None:
                call.check_end()
            return result

    if hasattr(stock_call, "__wrapped__"):
        __call__.__wrapped__ = _accelerated(stock_call.__wrapped__, interrupts)
    return __call__


def _get_timesteps(stock: Any) -> Callable[..., Any]:
    signature = inspect.signature(stock.get_timesteps)

    @wraps(stock.get_timesteps)
    def get_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the stock method, on the stock schedule: a plan is entered at the level at which stock enters its own."""
        call = call_of(self)
        if call is not None and call.outside is not None:
            return _entered_outside(stock, call, signature.bind(self, *args, **kwargs))
        if call is None or call.run is None:
            return stock.get_timesteps(self, *args, **kwargs)
        run, scheduler = call.run, call.scheduler
        steps = run.stock.steps
        if not run.lays_out:
            *more, rest, count = stock.get_timesteps(self, *args, **kwargs)
            if 0 < len(rest) < steps and not run.stock.entry:  # the pipeline told the scheduler nothing
                scheduler.set_begin_index(steps - len(rest))
            return *more, rest, count
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments["num_inference_steps"] = steps
        scheduler.timesteps = call.stock_timesteps
        *more, rest, count = stock.get_timesteps(*bound.args, **bound.kwargs)
        if not len(rest):
            return *more, rest, count
        if len(rest) < steps and not run.stock.entry:  # the pipeline told the scheduler nothing
            scheduler.set_begin_index(steps - len(rest))
        if not run.lays_out:  # of the few steps that are left none is left out
            return *more, rest, count
        lay_out(scheduler, run)
        return *more, scheduler.timesteps, len(scheduler.timesteps)

    return get_timesteps


def _entered_outside(stock: Any, call: Any, bound: inspect.BoundArguments) -> Any:
    """`get_timesteps` for a run outside of the model: stock cuts its schedule, and the run's plan begins at the cut."""
    run, scheduler, given = call.outside, call.scheduler, bound.arguments
    if given.get("num_inference_steps") == len(run.shown["timesteps"]):  # counted by what the pipeline was shown
        given["num_inference_steps"] = run.count
    given.update({name: run.full[name] for name in SHOWN if name in run.full and torch.is_tensor(given.get(name))})
    with whole(scheduler), run.finding_entry():
        *more, rest, count = stock.get_timesteps(*bound.args, **bound.kwargs)
    if not len(rest):
        call.outside = None  # there is no step to be made
        return *more, rest, count
    run.enter_at(run.count - len(rest))
    lay_out(scheduler, run)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return *more, run.shown["timesteps"][: len(run.places)], len(run.places)


def _progress_bar(stock: Any) -> property:
    """The pipeline's own progress bar, the class's or what the user put in its place; it counts the run's steps."""

    @wraps(stock.progress_bar)
    def progress_bar(self: Any, iterable: Any = None, total: int | None = None, **look: Any) -> Any:
        """As the stock method; within a run it counts the run's steps, however often it is updated.

        look: what a pipeline's own takes besides (Marigold's `desc` and `leave`).
        """
        make = vars(self).get("progress_bar") or MethodType(stock.progress_bar, self)
        call = call_of(self)
        run = None if call is None else call.under_way
        if run is None or total is None:
            return make(iterable, total, **look)
        bar = make(total=run.total - run.done, **look)
        advance, shown, last, watched = bar.update, run.done, run.total, weakref.ref(call)

        def update(n: int = 1) -> None:
            nonlocal shown
            call = watched()
            run = None if call is None else call.under_way
            now = last if run is None else run.done
            advance(now - shown)
            shown = now

        bar.update = update
        return bar

    def get(self: Any) -> Any:
        return MethodType(progress_bar, self)

    def put(self: Any, value: Any) -> None:
        vars(self)["progress_bar"] = value

    def delete(self: Any) -> None:
        del vars(self)["progress_bar"]

    return property(get, put, delete)


def _reduce(self: Any, protocol: Any) -> Any:
    """Copies and pickles are accelerated in the same way, by a handle of their own."""
    handle = vars(self).get(HANDLE)
    if handle is None:
        return super(type(self), self).__reduce_ex__(protocol)
    state = {name: value for name, value in vars(self).items() if name != HANDLE}
    return _blank, (stock_of(type(self)),), {**state, HANDLE: handle.again}


def _blank(stock: Any) -> Any:
    return object.__new__(_pipeline_class(stock))


def _revive(self: Any, state: dict[str, Any]) -> None:
    again = state.pop(HANDLE)
    vars(self).update(state)
    self.__class__ = stock_of(type(self))
    again(self)

