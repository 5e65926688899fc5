"""A loaded model that draws orders: in full and accelerated at the same seed, one at a time, each of which can stop."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ralu_cache.api import accelerate
from ralu_cache.app.orders import Order
from ralu_cache.generate import Request, call_arguments, load, makes_videos
from ralu_cache.report.report import Report
from ralu_cache.temporal import temporal_names

KEPT = 4  # full runs, so that another speed-up of the same picture need not wait for them
DENOISERS = ("transformer", "transformer_2", "unet")
Picture = NDArray[np.float32]  # (Y, X, 3) in [0, 1], or a video (F, Y, X, 3)


class Stopped(Exception):
    """The visitor pressed Cancel, or went away."""


@dataclass(frozen=True)
class Drawing:
    """A picture, the seconds of its whole call, and of an accelerated one what it did. kept: it was drawn before."""

    picture: Picture
    seconds: float
    report: Report | None = None
    kept: bool = False


@dataclass(frozen=True)
class Job:
    """Who waits for a drawing. progress: told of steps done and steps in all; stopped: asked before every step."""

    progress: Callable[[int, int], None]
    stopped: Callable[[], bool]

    def go_on(self) -> None:
        """Raises Stopped once it should end."""
        if self.stopped():
            raise Stopped


class Studio:
    """One model. Only one order is drawn at a time; whoever comes meanwhile waits."""

    def __init__(self, request: Request) -> None:
        """Loads the model as `ralu-cache generate` would."""
        self.request = request
        self.pipe = load(request)
        self.pipe.set_progress_bar_config(disable=True)
        self.refused = refusals(self.pipe)
        self._lock = threading.Lock()
        self._warm: set[tuple[int | None, int | None]] = set()
        self._full: OrderedDict[str, Drawing] = OrderedDict()

    def full(self, order: Order, job: Job) -> Drawing:
        """The stock pipeline's picture; the last few are kept. Raises Stopped."""
        if (known := self._full.get(order.full)) is not None:
            self._full.move_to_end(order.full)
            return replace(known, kept=True)
        drawing = self._draw(replace(order, parts={}), job)
        self._full[order.full] = drawing
        while len(self._full) > KEPT:
            self._full.popitem(last=False)
        return drawing

    def accelerated(self, order: Order, job: Job) -> Drawing:
        """The same call with the order's parts. Raises Stopped, and what `accelerate` and the pipeline refuse with."""
        return self._draw(order, job)

    def _draw(self, order: Order, job: Job) -> Drawing:
        with self._lock:
            job.go_on()
            try:
                return self._call(order, job)
            except BaseException as error:
                error.__traceback__ = None  # its frames hold the call's latents
                raise
            finally:
                _free()

    def _call(self, order: Order, job: Job) -> Drawing:
        arguments = call_arguments(order.request, self.pipe)
        if order.size not in self._warm:  # the first call at a size is slower, whoever makes it
            with _stoppable(self.pipe, job):
                self.pipe(**arguments | {"num_inference_steps": 1}, output_type="latent")
            self._warm.add(order.size)
            arguments = call_arguments(order.request, self.pipe)  # whose generators are new
        start = perf_counter()
        with (
            accelerate(self.pipe, **order.parts) if order.parts else nullcontext() as handle,
            _stoppable(self.pipe, job),
        ):
            drawn = self.pipe(**arguments, callback_on_step_end=_teller(job), output_type="np")
        seconds = perf_counter() - start
        picture = (drawn.frames if makes_videos(self.pipe) else drawn.images)[0]
        return Drawing(np.asarray(picture, np.float32), seconds, None if handle is None else handle.report)


def _teller(job: Job) -> Callable[..., dict[str, Any]]:
    """A pipeline's callback at the end of each step."""

    def told(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        job.progress(index + 1, pipe.num_timesteps)
        job.go_on()
        return tensors

    return told


@contextmanager
def _stoppable(pipe: Any, job: Job) -> Iterator[None]:
    """Asks before every call of a denoiser, too: a plan may make several steps between two that callbacks know."""
    found = [getattr(pipe, name, None) for name in DENOISERS]
    hooks = [
        module.register_forward_pre_hook(lambda *_: job.go_on()) for module in found if isinstance(module, nn.Module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def refusals(pipe: Any) -> dict[str, str]:
    """What `accelerate` refuses for this pipeline, by the setting's name, and in whose words."""
    asked: dict[str, dict[str, Any]] = {f"temporal={name}": {"temporal": name} for name in temporal_names()}
    asked |= {"spatial": {"spatial": "ralu"}, "speedup": {"speedup": "4x"}}
    asked |= {"solver": {"solver": "multistep"}, "guidance": {"guidance": "early"}}
    found = {}
    for name, parts in asked.items():
        try:
            accelerate(pipe, **parts).disable()
        except (TypeError, ValueError) as error:
            found[name] = str(error)
    return found
