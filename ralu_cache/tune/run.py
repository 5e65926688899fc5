"""tune(): search the settings of one call of a model for some minutes, and leave a profile of the best and a page."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from ralu_cache.api import accelerate
from ralu_cache.profiles.facts import Model, with_defaults
from ralu_cache.profiles.finding import place_for
from ralu_cache.profiles.profile import Front, Profile
from ralu_cache.tune.bench import YARDSTICK, Bench, subjects_of
from ralu_cache.tune.front import TARGETS, Measured, front
from ralu_cache.tune.profile import ROUNDS, existing, front_of, timed
from ralu_cache.tune.quality import DEFAULT, loss_of
from ralu_cache.tune.seeds import seeds
from ralu_cache.tune.space import SOLVERS, TEMPORAL, Space
from ralu_cache.tune.workers import EXECUTORS, Workers

logger = logging.getLogger("ralu_cache")
REFERENCES = 0.3  # of the time, at most, for the full runs that all is compared with
TIMING = 0.2  # at most, for timing the front again
LOOK = 0.2  # at most, for drawing what looks good on other seeds


@dataclass(frozen=True)
class Tuned:
    """path: the profile's file. page: of the study. front: what was found for this call, a part of `profile`."""

    path: Path
    page: Path
    profile: Profile
    front: Front


@dataclass(frozen=True)
class Options:
    """What `tune` takes beside the pipeline and the prompts; see there."""

    call: Mapping[str, Any]
    minutes: float
    target: str = "speed"
    quality: str | Callable[..., Any] = DEFAULT
    cost: str = "seconds"
    study: Path = Path("out/tune")
    storage: str | None = None
    out: Path | None = None
    name: str | None = None
    sampler: str = "tpe"
    seed: int = 0
    batch: int = 1
    scales: tuple[float, float] | None = None
    trials: int | None = None
    executor: str = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ValueError(f"unknown executor {self.executor!r}; accepted: {', '.join(EXECUTORS)}")
        if not self.minutes > 0:
            raise ValueError(f"minutes must be a number above 0, got {self.minutes!r}")
        if self.target not in TARGETS:
            raise ValueError(f"unknown target {self.target!r}; accepted: {', '.join(TARGETS)}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch!r}")


def tune(
    pipe: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    call: Mapping[str, Any] | None = None,
    minutes: float = 15,
    *,
    target: str = "speed",
    quality: str | Callable[..., Any] = DEFAULT,
    cost: str = "seconds",
    study: str | PathLike[str] = "out/tune",
    storage: str | None = None,
    out: str | PathLike[str] | None = None,
    name: str | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    batch: int = 1,
    scales: tuple[float, float] | None = None,
    trials: int | None = None,
    executor: str = "local",
    workers: int | None = None,
    make: Callable[[], Any] | None = None,
) -> Tuned:
    """Find the settings of `accelerate` that serve one call of this model best, at every speed.

    What matters most
        prompts: such as will be drawn, at least 2, a dozen is good; mappings stand for their embeddings.
        call: the arguments of that call, `num_inference_steps`, size and guidance; all is measured for it alone.
        minutes: of this run; the same call of `tune` goes on later where it stopped, also if it was killed. Ctrl-C ends
            it with what was found so far.
        quality: by which loss is judged: "perceptual", "psnr", "clip", "image-reward", "attributes", "probability",
            "package.module:function" or a function (see `ralu_cache.tune.quality.loss_of`).
        target: what `accelerate(pipe, profile=...)` takes of the front: "speed", the knee, or "loss", the fastest that
            can't be told from the best.
    What to tinker with
        cost: what is minimised beside the loss: "seconds", against the full run's at that moment, or "flops", on a
            machine whose clock can't be trusted.
        study: a folder for the study, its references and its page. storage: instead of the SQLite file in it a journal
            ("FILE.log") or a URL; processes that share storage and folder share the search.
        out: the profile's file; by default beside the model, or in the user's cache folder. name: of the model.
        sampler: "tpe" or "nsga2". seed: of the first prompt's noise and of the sampler. batch: prompts in one call.
        scales: guidance scales (lowest, highest) that may be taken in place of the call's.
        trials: stop after so many, if the time is not over before.
        executor: "local", or "ray": trials on the workers of a cluster, so many `workers` or one for each GPU or CPU;
            `make` gives each of them the pipeline anew, and must be picklable.

    Raises ValueError, before anything is run, for bad arguments, a study or profile of another model, and too little
    time for two full runs; ImportError without Optuna.
    """
    options = Options(
        call or {}, minutes, target, quality, cost, Path(study), storage, None if out is None else Path(out), name,
        sampler, seed, batch, scales, trials, executor, workers,
    )  # fmt: skip
    return tune_with(pipe, prompts, options, make)


def tune_with(
    pipe: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    options: Options,
    make: Callable[[], Any] | None = None,
) -> Tuned:
    """`tune`, with its options in one.

    make: gives the pipeline anew, for the workers of the executor "ray"; it is sent to them, so it must be picklable.
    """
    try:
        from ralu_cache.tune.storage import quiet
    except ImportError as error:
        raise ImportError("tuning needs Optuna: pip install 'ralu-cache[tune]'") from error
    from ralu_cache.tune.again import candidates, looked_at_again
    from ralu_cache.tune.loop import search_until
    from ralu_cache.tune.page import write_page
    from ralu_cache.tune.search import Search, measured

    end = time.monotonic() + 60 * options.minutes
    bench, given = _bench(pipe, prompts, options)
    path = options.out or place_for(pipe)
    existing(path, Model.of(pipe))  # refused now, not when all is done
    quiet()
    storage, study = _opened(options, bench.made, options.seed)
    bench, full = _within(bench, study, options.minutes)
    if len(bench.subjects) < len(prompts):
        logger.warning(
            "%d of %d prompts are used: a full run takes about %.3g seconds a prompt, and %g minutes are few",
            len(bench.subjects), len(prompts), full, options.minutes,
        )  # fmt: skip
    space = _space(pipe, bench, options.scales)
    search = Search(study, storage, space, bench, options.study / "pictures", options.cost)
    search.seed(seeds(space))
    search.record()
    reserve = 0 if options.cost == "flops" else min(TIMING * 60 * options.minutes, ROUNDS * full * 3)
    workers = None
    if options.executor == "ray":
        if make is None:
            raise ValueError("the executor 'ray' needs make=, which gives its workers a pipeline of their own")
        shared = replace(options, study=options.study.resolve())
        workers = Workers(partial(_search_of, make, prompts, shared, len(bench.subjects), space), options.workers)
    look = LOOK * 60 * options.minutes
    interrupted = not search_until(search, end - reserve - look, options.trials, workers)
    again: list[Measured] = []
    if not interrupted:
        again = looked_at_again(bench, study, candidates(measured(study)), full, end - reserve)
    kept = front(again or measured(study))
    speedups = {} if interrupted or options.cost == "flops" else timed(bench, kept, end)
    found = front_of(bench, kept, speedups, given, options.target, options.cost)
    model_name = options.name or _name(pipe)
    there = existing(path, Model.of(pipe))  # read now: what others tuned meanwhile stays
    profile = (there or Profile(Model.of(pipe), model_name, (found,))).adding(found)
    profile.save(path)
    page = write_page(options.study, study, bench, found, measured(study), model_name, bool(again))
    return Tuned(path, page, profile, found)


def _bench(pipe: Any, prompts: Sequence[str | Mapping[str, Any]], options: Options) -> tuple[Bench, dict[str, Any]]:
    """The bench with all prompts, and the arguments of the call with their defaults. Raises ValueError for bad ones."""
    subjects = subjects_of(prompts, options.seed)
    accepted = inspect.signature(pipe.__call__).parameters
    if unknown := [name for name in options.call if name not in accepted]:
        raise ValueError(f"{type(pipe).__name__} takes no {unknown[0]}; call has {', '.join(options.call)}")
    given = with_defaults(pipe, options.call)
    call = {name: value for name, value in options.call.items() if name != "num_inference_steps"}
    steps = int(given["num_inference_steps"])
    Space(steps, scales=options.scales)
    loss = loss_of(options.quality, [subject.text for subject in subjects], str(pipe.device))
    batch = options.batch if all(subject.arguments is None for subject in subjects) else 1
    return Bench(pipe, steps, call, subjects, loss, options.study / "references", batch), given


def _within(bench: Bench, study: Any, minutes: float) -> tuple[Bench, float]:
    """The bench with as many prompts as the time allows, and the seconds that a full run of one takes, about.

    A study that goes on keeps the prompts that it began with. Raises ValueError for too little time for two full runs.
    """
    chunk = bench.chunks(1)[0]
    bench.yardstick(chunk)  # which warms up
    seconds = min(bench.yardstick(chunk) for _ in range(2)) * bench.steps / YARDSTICK
    if 60 * minutes < 2 * seconds:
        raise ValueError(
            f"minutes={minutes:g} are too few: a full run of {bench.steps} steps takes about {seconds:.3g} seconds; "
            f"two are needed at least, better fifty ({50 * seconds / 60:.2g} minutes)"
        )
    each = seconds / len(chunk)
    count = study.user_attrs.get("prompts")
    if count is None:
        count = min(len(bench.subjects), max(2, int(REFERENCES * 60 * minutes / each)))
        study.set_user_attr("prompts", count)
    return replace(bench, subjects=bench.subjects[:count]), each


def _space(pipe: Any, bench: Bench, scales: tuple[float, float] | None) -> Space:
    """What this pipeline can be given: each part is installed once, and what is refused is left out.

    Raises TypeError or ValueError where plans are refused, which every setting has: no adapter, no stages.
    """
    accelerate(pipe, spatial="ralu").disable()

    def takes(**part: Any) -> bool:
        try:
            accelerate(pipe, **part).disable()
        except (RuntimeError, TypeError, ValueError) as error:
            logger.warning("the search leaves out %s: %s", part, error)
            return False
        return True

    guided = bench.guided(bench.chunks(1)[0])
    temporal = tuple(name for name in TEMPORAL if name == "none" or takes(temporal=name))
    solvers = tuple(name for name in SOLVERS if name == "euler" or takes(solver=name))
    return Space(bench.steps, guided, temporal=temporal, solvers=solvers, scales=scales if guided else None)


def _opened(options: Options, made: Mapping[str, Any], seed: int | None) -> tuple[Any, Any]:
    """(storage, study) of what `made` names, begun or gone on with."""
    from ralu_cache.tune.storage import open_storage, open_study

    where = options.storage or str(options.study / "study.db")
    storage = open_storage(where)
    return storage, open_study(storage, where, made, options.sampler, seed)


def _search_of(
    make: Callable[[], Any], prompts: Sequence[str | Mapping[str, Any]], options: Options, count: int, space: Space
) -> Any:
    """The search of a worker, on the study that was begun: its first `count` prompts."""
    from ralu_cache.tune.search import Search
    from ralu_cache.tune.storage import quiet

    quiet()
    bench, _ = _bench(make(), prompts, options)
    storage, study = _opened(options, bench.made, None)  # a seed would have all suggest the same
    bench = replace(bench, subjects=bench.subjects[:count])
    return Search(study, storage, space, bench, options.study / "pictures", options.cost)


def _name(pipe: Any) -> str:
    """The folder's or repository's last name, as diffusers keeps it; else the pipeline's class."""
    config = getattr(pipe, "config", {})
    return Path(str(config.get("_name_or_path") or type(pipe).__name__)).name
