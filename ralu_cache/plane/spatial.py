"""Spatial methods: how a run is divided into stages of coarse, mixed and fine tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ralu_cache.plane import presets, schedule
from ralu_cache.plane.checks import check_choice
from ralu_cache.plane.guidance import Guidance, resolve_guidance
from ralu_cache.plane.regions import Scorer, get_scorer
from ralu_cache.plane.renamed import renamed
from ralu_cache.plane.transition import LIFTS, NOISES, STARTS

POSITIONS = ("own", "fine")
SHIFTS = ("model", "nt-dm")
OVER_TIME = ("frame", "shared")
ANCHORS = {"center": 0.5, "corner": 0.0}
CHOICES = {
    "noise": NOISES, "start": STARTS, "lift": LIFTS, "positions": POSITIONS, "anchor": tuple(ANCHORS),
    "regions_over_time": OVER_TIME,
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A run of steps on one kind of layout: `ratio` of the coarse cells is refined (0: none, 1: all).

    `sigmas` holds one level a step and, last, the level at which the stage ends.
    """

    ratio: float
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def kind(self) -> str:
        return {0.0: "coarse", 1.0: "fine"}.get(self.ratio, "mixed")


class SpatialMethod(Protocol):
    """What the orchestrator needs of a spatial method; `RALU` is ours, others may be registered."""

    @property
    def noise(self) -> str: ...
    @property
    def start(self) -> str: ...
    @property
    def lift(self) -> str: ...
    @property
    def positions(self) -> str: ...
    @property
    def anchor(self) -> str: ...
    @property
    def scorer(self) -> Scorer: ...
    @property
    def regions_over_time(self) -> str: ...

    def stages(self, num_inference_steps: int, model_shift: float) -> tuple[Stage, ...]: ...

    def overrides(self, num_inference_steps: int) -> str | None: ...


@renamed("frame", "positions")
@dataclass(frozen=True)
class RALU:
    """Region-adaptive latent upsampling (arXiv 2507.08422): coarse steps, then refined regions, then everything.

    What matters most
        steps: steps of each stage, fixed whatever `num_inference_steps` the caller gives; default (5, 6, 7), "4x".
        split: instead of `steps`, divide the caller's `num_inference_steps` in these proportions.
        ends: where each stage ends, in the paper's time t = 1 - sigma; the last is 1. Early ends keep the picture of
            the full run (measured: benchmarks/results/ralu), late ends leave more of it to the coarse tokens.
        ratio: share of the coarse cells refined in the mixed stage; one value for each mixed stage, or one for all.
        regions: the scorer that chooses them, a name (`ralu_cache.plane.regions.scorer_names()`) or a `Scorer`.
        regions_over_time: of a video, "frame": each frame refines its own cells, as many in all, so that regions go
            along with what moves; "shared": all frames refine the same cells, those that score highest on average,
            so that none changes between coarse and fine within the video. Images take "frame" alone.

    What to tinker with
        noise: "rewind" re-noises along the seed's own noise, so that the picture stays that of the full run; "paper"
            mixes in fresh correlated noise.
        start: coarse initial noise as block means of the seed's ("pooled") or as every fourth sample ("subsampled").
        lift: how a clean estimate becomes fine under "rewind": "nearest", "bicubic" or "pixel" (through the VAE).
        shifts: schedule shift of each stage, or "model": the sampler's own for all (e^mu where it shifts dynamically),
            or "nt-dm": those that noise-timestep distribution matching finds (shipped solved for the published plans).
        z: level ratio of the transitions, sigma' = z sigma / (1 + (z - 1) sigma); by default 3, with "nt-dm" its own.
        shift: the sampler shift that NT-DM matches, or "model".
        positions: position ids of coarse tokens count coarse tokens ("own") or fine ones ("fine").
        anchor: a coarse token sits at its cell's "center" or "corner".
        guidance: where classifier-free guidance is computed unless `accelerate(guidance=...)` says otherwise, see
            there; None and "all" leave it to the call.

    Raises ValueError, with the value and what is accepted, for anything unknown, NaN, negative or ill-matched.
    """

    steps: tuple[int, ...] | None = None
    split: tuple[int, ...] | None = None
    ends: tuple[float, ...] = (0.1, 0.2, 1.0)
    ratio: float | tuple[float, ...] = 0.3
    regions: str | Scorer = "latent-gradient"
    noise: str = "rewind"
    start: str = "pooled"
    lift: str = "nearest"
    shifts: tuple[float, ...] | str = "model"
    z: float | None = None
    shift: float | str = 3.0
    positions: str = "own"
    anchor: str = "center"
    regions_over_time: str = "frame"
    guidance: str | Guidance | tuple[bool, ...] | None = field(default=None, repr=False)  # no part of the plan

    def __post_init__(self) -> None:
        resolve_guidance(self.guidance)
        if self.steps is not None and self.split is not None:
            raise ValueError(f"give steps or split, not both; got steps={self.steps} and split={self.split}")
        if self.steps is None and self.split is None:
            object.__setattr__(self, "steps", (5, 6, 7))
        for name, accepted in CHOICES.items():
            check_choice(name, getattr(self, name), accepted)
        if self.noise == "paper" and self.lift != "nearest":
            raise ValueError(
                f"lift={self.lift!r} needs noise='rewind': the paper's noise is defined for 'nearest' only"
            )
        if isinstance(self.shifts, str):
            check_choice("shifts", self.shifts, SHIFTS)
        if self.noise == "paper" and self.z is not None and self.z < 2:
            raise ValueError(f"noise='paper' needs z >= 2, got z={self.z}")
        if self.shift != "model" and (isinstance(self.shift, str) or not 0 < self.shift < math.inf):
            raise ValueError(f"shift must be a positive number or 'model', got {self.shift!r}")
        self._check_plan()
        self.ratios()
        _ = self.scorer

    def _check_plan(self) -> None:
        counts = self.steps if self.steps is not None else self.split
        probe = (1.0,) * len(self.ends) if isinstance(self.shifts, str) else self.shifts
        if counts is None or not len(counts) == len(self.ends) == len(probe):
            given = ", ".join(
                f"{n}={v}" for n in ("steps", "split", "ends", "shifts") if (v := getattr(self, n)) is not None
            )
            raise ValueError(f"a plan needs one value for each stage in all of its parts, got {given}")
        schedule.stage_sigmas(counts, self.ends, probe, self._z)

    @classmethod
    def preset(cls, name: str) -> RALU:
        """A plan by name.

        "ralu-4x", "ralu-5x", "ralu-7x" (published for FLUX), "ralu-2x" or "ralu-3x" (for SD3): the steps and refined
        share, hence the cost, of a published plan, with our levels and transitions. "ralu-8x", "ralu-12x", "ralu-15x",
        "ralu-18x", "ralu-22x": ours with late ends, for strong guidance (see `ralu_cache.plane.presets.LatePlan`).
        """
        if name in presets.LATE_PLANS:
            late = presets.LATE_PLANS[name]
            return cls(steps=late.steps, ends=late.ends, shifts=late.shifts, z=late.z, guidance=late.guidance)
        plan = _published(name)
        return cls(steps=plan.steps, ratio=plan.ratio)

    @classmethod
    def paper(cls, name: str = "ralu-4x", shift: float | str | None = None) -> RALU:
        """A published plan with all published choices: levels, fresh noise, sub-sampled start, Canny regions.

        The published levels match a sampler shift of 3.0. With `shift`, a number or "model" (Qwen-Image's, say, is
        about 2 at 1024x1024), NT-DM is solved for that instead.
        """
        plan = _published(name)
        levels = {"shifts": plan.shifts, "z": plan.z} if shift is None else {"shifts": "nt-dm", "shift": shift}
        return cls(
            steps=plan.steps,
            ends=plan.ends,
            ratio=plan.ratio,
            noise="paper",
            start="subsampled",
            regions="canny",
            anchor="corner",
            **levels,
        )

    @property
    def _z(self) -> float:
        return 3.0 if self.z is None else self.z

    @property
    def scorer(self) -> Scorer:
        return self.regions if isinstance(self.regions, Scorer) else get_scorer(self.regions)

    def ratios(self) -> tuple[float, ...]:
        """Share of refined cells in each stage: 0 first, 1 last, growing between."""
        count = len(self.ends)
        mixed = max(0, count - 2)
        given = self.ratio if isinstance(self.ratio, tuple) else (self.ratio,) * min(mixed, 1)
        if isinstance(self.ratio, float | int) and mixed > 1:
            given = tuple(self.ratio + (1 - self.ratio) * k / mixed for k in range(mixed))
        if len(given) != mixed or not all(0 < r < 1 for r in given) or list(given) != sorted(given):
            raise ValueError(
                f"ratio must be {mixed} growing share(s) between 0 and 1 for {count} stages, got {self.ratio}"
            )
        return (1.0,) if count == 1 else (0.0, *given, 1.0)

    def stages(self, num_inference_steps: int, model_shift: float) -> tuple[Stage, ...]:
        """The stages of one run; `model_shift` is the sampler's own shift (e^mu where it shifts dynamically)."""
        steps = self.steps
        if steps is None:
            assert self.split is not None
            steps = schedule.split_steps(num_inference_steps, self.split)
        shifts, z = self._levels(steps, model_shift)
        sigmas = schedule.stage_sigmas(steps, self.ends, shifts, z)
        return tuple(Stage(r, tuple(float(s) for s in levels)) for r, levels in zip(self.ratios(), sigmas, strict=True))

    def _levels(self, steps: tuple[int, ...], model_shift: float) -> tuple[tuple[float, ...], float]:
        if not isinstance(self.shifts, str):
            return self.shifts, self._z
        if self.shifts == "model":
            return (model_shift,) * len(steps), self._z
        shipped = presets.solved(steps, self.ends) if self.shift == 3.0 else None
        target = round(model_shift, 4) if isinstance(self.shift, str) else self.shift
        shifts, z = shipped or schedule.solve_nt_dm(steps, self.ends, target)
        return shifts, z if self.z is None else self.z

    def overrides(self, num_inference_steps: int) -> str | None:
        """What to tell a caller whose `num_inference_steps` this plan does not follow, or None."""
        if self.steps is None or sum(self.steps) == num_inference_steps:
            return None
        return (
            f"num_inference_steps={num_inference_steps} is overridden: this RALU plan takes {sum(self.steps)} steps "
            f"{self.steps}; use RALU(split={self.steps}) to divide num_inference_steps instead"
        )


def _published(name: str) -> presets.Preset:
    if name not in presets.PRESETS:
        raise ValueError(f"unknown RALU preset {name!r}; accepted: {', '.join(presets.PRESETS)}")
    return presets.PRESETS[name]


Factory = Callable[[], SpatialMethod]
_METHODS: dict[str, Factory] = {
    name: partial(RALU.preset, name) for name in (*presets.PRESETS, *presets.LATE_PLANS)
}


def register_spatial(name: str, factory: Factory) -> None:
    """Make `accelerate(pipe, spatial=name)` use `factory()`. Raises ValueError if the name is taken."""
    if name in _METHODS or name == "ralu":
        raise ValueError(f"spatial method {name!r} is registered already")
    _METHODS[name] = factory


def spatial_names() -> tuple[str, ...]:
    return ("ralu", *_METHODS)


def resolve_spatial(spec: str | SpatialMethod | None, default: str) -> SpatialMethod | None:
    """A name, a config object or None -> the config; plain "ralu" is the family's `default` preset."""
    if spec is None:
        return None
    if isinstance(spec, str):
        name = default if spec == "ralu" else spec
        if name not in _METHODS:
            raise ValueError(
                f"unknown spatial method {spec!r}; accepted: None, {', '.join(spatial_names())}, or a RALU(...)"
            )
        return _METHODS[name]()
    if not callable(getattr(spec, "stages", None)):
        raise TypeError(f"spatial must be None, a name or a RALU(...), got {type(spec).__name__}")
    return spec
