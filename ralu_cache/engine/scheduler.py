"""The scheduler that a pipeline finds within a call: a copy of its own, of a class that asks the call for its run.

The copy's class is a disguised subclass of the user's, whatever that is: where the call has no run, every method is the
stock one. What the stock code reads of the schedule is the stock schedule; what the pipeline reads is what it is shown.
"""

from __future__ import annotations

import copy
import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ralu_cache.engine.disguise import Alike, disguised, stock_of
from ralu_cache.engine.run import Run
from ralu_cache.engine.scheduler_run import SchedulerRun
from ralu_cache.engine.times import times_at

_CALL, _RUN = "_ralu_cache_call", "_ralu_cache_run"
_WHOLE = ("scale_model_input", "add_noise", "index_for_timestep")  # what else stock code does along the stock schedule


def staged(scheduler: Any, call: Any) -> Any:
    """A copy of the user's scheduler for one call, which asks the call for its run. The call is not kept alive."""
    mine = copy.copy(scheduler)
    mine.__class__ = _staged_class(stock_of(type(scheduler)))
    vars(mine)[_CALL] = weakref.ref(call)
    return mine


def release(scheduler: Any) -> None:
    """Make a call's scheduler a stock one, for whoever still holds it."""
    scheduler.__class__ = stock_of(type(scheduler))
    vars(scheduler).pop(_CALL, None)
    run: SchedulerRun | None = vars(scheduler).pop(_RUN, None)
    if run is not None:
        run.close()


def model_shift(scheduler: Any, mu: float | None) -> float:
    """The factor s in sigma' = s sigma / (1 + (s - 1) sigma) that the stock scheduler applies to flow levels."""
    if not scheduler.config.use_dynamic_shifting:
        return float(scheduler.shift if hasattr(scheduler, "shift") else scheduler.config.flow_shift)
    if mu is None:
        raise ValueError("`mu` must be passed when `use_dynamic_shifting` is set to be `True`")
    return math.exp(mu) if scheduler.config.time_shift_type == "exponential" else float(mu)


def lay_out(scheduler: Any, run: Run | SchedulerRun) -> None:
    """Show the pipeline the levels of a run: of its stages, or those that are computed."""
    if isinstance(run, SchedulerRun):
        vars(scheduler)[_RUN] = run
        vars(scheduler).update(run.shown)
        return
    call = _call(scheduler)
    sigmas = torch.tensor(run.levels(), dtype=torch.float32, device=scheduler.timesteps.device)
    most = scheduler.config.num_train_timesteps
    scheduler.timesteps = times_at(sigmas[:-1], call.stock_sigmas, call.stock_timesteps, most)
    scheduler.sigmas = sigmas.to(scheduler.sigmas.device)
    scheduler.num_inference_steps = len(scheduler.timesteps)


def _lay_out_stock(scheduler: Any, call: Any) -> None:
    """Show the pipeline its stock schedule again."""
    scheduler.timesteps, scheduler.sigmas = call.stock_timesteps, call.stock_sigmas
    scheduler.num_inference_steps = len(scheduler.timesteps)


@contextmanager
def whole(scheduler: Any) -> Iterator[None]:
    """Within it a scheduler that shows only some levels holds its stock schedule."""
    run: SchedulerRun | None = vars(scheduler).get(_RUN)
    full = {} if run is None else run.full
    before = {name: vars(scheduler)[name] for name in full}  # stock methods call one another
    vars(scheduler).update(full)
    try:
        yield
    finally:
        vars(scheduler).update(before)


def _call(scheduler: Any) -> Any:
    reference = vars(scheduler).get(_CALL)
    call = None if reference is None else reference()
    return None if call is None or call.over else call


def _run(scheduler: Any) -> Run | SchedulerRun | None:
    call = _call(scheduler)
    return None if call is None else vars(scheduler).get(_RUN) or call.run


@cache
def _staged_class(stock: type) -> type:
    methods: dict[str, Callable[[Any], Any]] = {
        "set_timesteps": _set_timesteps, "set_begin_index": _set_begin_index, "scale_noise": _scale_noise,
        "step": _step, **{name: _on_the_stock_schedule(name) for name in _WHOLE},
    }  # fmt: skip
    body: dict[str, Any] = {name: make(stock) for name, make in methods.items() if hasattr(stock, name)}
    if isinstance(inspect.getattr_static(stock, "init_noise_sigma", None), property):
        body["init_noise_sigma"] = _init_noise_sigma(stock)
    return disguised(stock, Alike, **body, run=property(_run), __deepcopy__=_copied)


def _on_the_stock_schedule(name: str) -> Callable[[Any], Any]:
    def made(stock: Any) -> Any:
        method = getattr(stock, name)

        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with whole(self):
                return method(self, *args, **kwargs)

        return call

    return made


def _init_noise_sigma(stock: Any) -> property:
    def get(self: Any) -> Any:
        with whole(self):
            return stock.init_noise_sigma.fget(self)

    return property(get)


def _copied(self: Any, memo: dict[int, Any]) -> Any:
    """A deep copy made within a call (a scheduler for another latent) goes along with it, by a run of its own."""
    stock, call = stock_of(type(self)), _call(self)
    other: Any = object.__new__(stock)
    memo[id(self)] = other
    own: SchedulerRun | None = vars(self).get(_RUN)
    state = {name: value for name, value in vars(self).items() if name not in (_CALL, _RUN)}
    vars(other).update(copy.deepcopy(state, memo))
    if call is not None:
        other.__class__ = type(self)
        vars(other)[_CALL] = vars(self)[_CALL]
        if own is not None:
            vars(other)[_RUN] = own.beside()
        call.copies.append(other)
    return other


def _set_timesteps(stock: Any) -> Callable[..., None]:
    signature = inspect.signature(stock.set_timesteps)

    @wraps(stock.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        vars(self).pop(_RUN, None)
        stock.set_timesteps(self, *args, **kwargs)
        if (call := _call(self)) is None:
            return
        run = call.begin(self, signature.bind(self, *args, **kwargs).arguments)
        if run is None:
            return
        if isinstance(run, SchedulerRun):
            lay_out(self, run)
            return
        self._begin_index = 0
        if run.lays_out:
            lay_out(self, run)

    return set_timesteps


def _set_begin_index(stock: Any) -> Callable[..., None]:
    @wraps(stock.set_begin_index)
    def set_begin_index(self: Any, begin_index: int = 0) -> None:
        run = _run(self)
        if isinstance(run, SchedulerRun):
            if not run.entering:
                stock.set_begin_index(self, run.places[begin_index] if begin_index < len(run.places) else run.count)
            return
        stock.set_begin_index(self, begin_index)
        if run is None or run.index or not 0 < begin_index < run.stock.steps:
            return
        laid_out = run.lays_out
        if run.method is None:
            run.start_at(begin_index)
        else:
            run.enter_at(begin_index)
        if run.lays_out:
            lay_out(self, run)
            stock.set_begin_index(self, 0)
        elif laid_out:  # of the few steps that are left none is left out
            _lay_out_stock(self, _call(self))

    return set_begin_index


def _scale_noise(stock: Any) -> Callable[..., Tensor]:
    @wraps(stock.scale_noise)
    def scale_noise(self: Any, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """Forward process on the tokens of the stage in which the run stands; latents as images, or packed."""
        run = _run(self)
        if not isinstance(run, Run) or run.method is None or noise is None:
            with whole(self):
                return stock.scale_noise(self, sample, timestep, noise)
        packed = sample.ndim == 3
        if run.grid is None and packed:
            raise ValueError(f"scale_noise before the first step needs latents (B, C, H, W), got {tuple(sample.shape)}")
        grid = run.grid if packed else (0, 0)
        assert grid is not None
        to_image, from_image = run.geometry.to_image, run.geometry.from_image
        return from_image(run.add_noise(to_image(sample, grid), to_image(noise, grid)), sample).to(sample.dtype)

    return scale_noise


def _step(stock: Any) -> Callable[..., Any]:
    _, *parameters = inspect.signature(stock.step).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    needed, takes_more = frozenset(names) - defaults.keys(), any(p.kind is p.VAR_KEYWORD for p in parameters)

    @cache  # loops call it in one way, step after step
    def refused(count: int, by_name: tuple[str, ...]) -> bool:
        """True for what `inspect.Signature.bind` would refuse: so many arguments by place, and these by name."""
        placed, named = frozenset(names[:count]), frozenset(by_name)
        unknown = not takes_more and not named <= needed | defaults.keys()
        return count > len(names) or bool(placed & named) or unknown or not needed <= placed | named

    def by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}

    @wraps(stock.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the stock method, and on over what is not computed. RuntimeError, ValueError for what cannot be served."""
        call = _call(self)
        run = None if call is None else vars(self).get(_RUN) or call.run
        if run is None or refused(len(args), tuple(kwargs)):  # stock says what is wrong
            return stock.step(self, *args, **kwargs)
        if isinstance(run, SchedulerRun):
            call.follow(run)
            output = _step_outside(self, run, stock, by_name(args, kwargs))
        else:
            given = {} if run.stock_steps else by_name(args, kwargs)
            if given.get("per_token_timesteps") is not None:
                raise ValueError("per_token_timesteps are not supported once accelerated; call handle.disable() first")
            run.tally.check_asked(copied=self is not call.scheduler)
            if not run.batch.settled:
                run.settle(by_name(args, kwargs)["sample"].shape[0])
            if run.stock_steps:
                output = stock.step(self, *args, **kwargs)
                run.close_step(output[0])
            else:
                output = _step_inside(self, run, stock, given)
        call.stepped(run)
        return output

    return step


def _step_outside(self: Any, run: SchedulerRun, stock: Any, given: Mapping[str, Any]) -> Any:
    """A step of a run that lives here alone."""
    with whole(self):
        begun = getattr(self, "step_index", None)
        begun = getattr(self, "begin_index", None) if begun is None and run.index is None else begun
        output = run.advance(
            dict(given), begun, lambda arguments: stock.step(self, **arguments), lambda out: _made(given, out)
        )
        if run.setting.solver is not None:
            self._step_index = run.index
    return output


def _step_inside(self: Any, run: Run, stock: Any, given: Mapping[str, Any]) -> Any:
    """A step of a run that the denoiser's hooks take part in, where the stock step alone does not do."""
    sample, plain = given["sample"], {**given, "return_dict": False}
    flow = isinstance(self, FlowMatchEulerDiscreteScheduler)  # whose steps have the model's dtype, others' the sample's
    gives = None if flow else sample.dtype
    previous = run.advance(given["model_output"], sample, lambda: stock.step(self, **plain)[0], gives)
    self._step_index = run.shown_index if run.lays_out else run.index
    return _made(given, previous, flow)


def _made(given: Mapping[str, Any], sample: Tensor, flow: bool = True) -> Any:
    """A sample in the form of the stock step's result."""
    if not given["return_dict"]:
        return (sample,)
    return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample) if flow else SchedulerOutput(prev_sample=sample)
