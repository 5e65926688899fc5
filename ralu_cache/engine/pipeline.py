"""The class that an accelerated pipeline wears: its calls are `Call`s, and its scheduler and state are the call's.

Outside of a call every attribute is the user's own; within one, in its context, it is the call's.
"""

from __future__ import annotations

import dis
import inspect
import weakref
from collections.abc import Callable, Mapping
from functools import cache, wraps
from types import MethodType
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ralu_cache.adapters.probed import tensors_in
from ralu_cache.engine.context import Pause, call_of, current, entered
from ralu_cache.engine.disguise import disguised, stock_of
from ralu_cache.engine.identity import Identity
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
    stores = _stored(stock)
    private = {name for name in stores if name.startswith("_")} - _SHARED
    body: dict[str, Any] = {name: _of_the_call(stock, name) for name in private | {"scheduler"}}
    body["components"] = _components(stock)
    if "guider" in inspect.signature(stock.__init__).parameters:
        body["guider"] = _guider()
    if hasattr(stock, "get_timesteps"):
        body["get_timesteps"] = _get_timesteps(stock)
    call = _accelerated(stock.__call__, not _SHARED.isdisjoint(stores))
    return disguised(
        stock, **body, __call__=call, progress_bar=_progress_bar(stock),
        __reduce_ex__=_reduce, __setstate__=_revive,
    )  # fmt: skip


def _stored(stock: type) -> set[str]:
    """The attributes that a pipeline's `__call__` stores, or that of a class which it may go on to."""
    calls = (inspect.unwrap(vars(cls)["__call__"]) for cls in stock.__mro__ if "__call__" in vars(cls))
    return {found.argval for call in calls for found in dis.get_instructions(call) if found.opname == "STORE_ATTR"}


def _accelerated(stock_call: Any, interrupts: bool) -> Callable[..., Any]:
    """`stock_call` within a `Call`; so is what it wraps (without no_grad, say). interrupts: see `_told`."""
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
                _told(callback, interrupts) if name == "callback_on_step_end" else _paused(callback)
            )
        with handle.call(self, **given):
            result = stock_call(*bound.args, **bound.kwargs)
            if (call := call_of(self)) is not None:
                call.check_end()
            return result

    if hasattr(stock_call, "__wrapped__"):
        __call__.__wrapped__ = _accelerated(stock_call.__wrapped__, interrupts)
    return __call__


def _paused(callback: Any) -> Callable[..., Any]:
    def call_back(*args: Any, **kwargs: Any) -> Any:
        pause = Pause()
        with entered(pause):
            return callback(*args, **kwargs)

    return call_back


def _told(callback: Any, interrupts: bool) -> Callable[..., Mapping[str, Any]]:
    """`callback_on_step_end`, called once for each step of the stock schedule, as soon as the run has passed it.

    So what it does at a step, or at a share of them, it does at the noise level that this means in the stock call. A
    step of the run may pass none of them, or several; those after an interrupt are not told. interrupts: the pipeline
    knows such; else it ignores that attribute, whoever set it once.
    """
    tell = _paused(callback)

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


def _components(stock: Any) -> property:
    """What a pipeline is made of: also within a call with the user's own scheduler, so that a sibling is stock."""

    def get(self: Any) -> dict[str, Any]:
        return {name: vars(self).get(name, part) for name, part in stock.components.fget(self).items()}

    return property(get)


def _of_the_call(stock: type, name: str) -> property:
    """An attribute that within a call is the call's own."""

    def get(self: Any) -> Any:
        call = call_of(self)
        if call is not None and name in call.own:
            return call.own[name]
        if call is not None and name == "scheduler":
            return call.scheduler
        if name in vars(self):
            return vars(self)[name]
        return getattr(stock, name)

    def put(self: Any, value: Any) -> None:
        vars(self)[name] = value  # there too: other threads may watch
        call = call_of(self)
        if call is not None and name != "scheduler":
            if current() is not call and name in call.own and not _alike(call.own[name], value):
                call.forget(residuals=name.endswith("_kwargs"))  # guidance, or what the model is told
            call.own[name] = value

    def delete(self: Any) -> None:
        vars(self).pop(name, None)

    return property(get, put, delete)


def _guider() -> property:
    """The pipeline's guider, within a call the call's own: see `ralu_cache.engine.guider`."""

    def get(self: Any) -> Any:
        try:
            held = vars(self)["guider"]
        except KeyError:
            raise AttributeError("guider") from None
        call = call_of(self)
        return held if call is None or held is None else call.guider_of(held)

    def put(self: Any, value: Any) -> None:
        vars(self)["guider"] = value
        call = call_of(self)
        if call is not None:
            call.guider = None

    def delete(self: Any) -> None:
        vars(self).pop("guider", None)

    return property(get, put, delete)


def _alike(one: Any, other: Any) -> bool:
    """True for the same object, and for equal numbers."""
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return one is other or (numbers and one == other)


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

