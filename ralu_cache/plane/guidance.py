"""Classifier-free guidance where it decides: in which steps, for which samples and how strongly it is computed.

A guided step computes every picture twice, c with the prompt and u without. Guidance in a limited interval of noise
levels is Kynkäänniemi et al. (arXiv 2404.07724), stopping where both agree is Adaptive Guidance (arXiv 2312.12487).
Time t = 1 - sigma: 0 is noise, 1 clean. Pure rules; what carries them out is `ralu_cache.engine.root`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ralu_cache.plane.checks import check_choice, check_number, check_share

EARLY = 0.5  # without stages, "early" ends at this t
HELD = (None, "scaled")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """When the prediction without the prompt is computed; in other steps the prediction with it stands alone.

    Important
        start, end: in steps that begin at a time t from `start` to below `end`; t = 1 - sigma, of the noise level, so
            that it means the same in every plan.
        stages: instead, one bool for each stage of the plan.
    To tinker with
        agreement: from the step on in which a sample's two predictions agree so far (cosine, in float32), it is
            guided no more; each sample decides for itself. Waits for the device once a guided step.
        scale: the guidance scale in place of the call's, one number or one for each stage. Plans of few steps are
            drawn best at a lower scale than many steps; the call's own is never changed silently.
        held: "scaled": in steps without guidance, the last difference u - c stands in, times sigma over the level at
            which it was computed. Good for many steps; in short plans it measured worse than leaving it out.

    Raises ValueError, with the value, for anything else.
    """

    start: float = 0.0
    end: float = 1.0
    stages: tuple[bool, ...] | None = None
    agreement: float | None = None
    scale: float | tuple[float, ...] | None = None
    held: str | None = None
    early: bool = False

    def __post_init__(self) -> None:
        check_share("start", self.start)
        check_share("end", self.end)
        if self.end < self.start:
            raise ValueError(f"guidance must not end before it starts, got start={self.start} and end={self.end}")
        if self.stages is not None:
            if not self.stages or not all(isinstance(stage, bool) for stage in self.stages):
                raise ValueError(f"guidance stages must be one bool for each stage, got {self.stages!r}")
            if (self.start, self.end) != (0.0, 1.0):
                raise ValueError(f"give stages={self.stages} or start and end, not both")
        if self.agreement is not None:
            check_share("agreement", self.agreement)
        for scale in self.scale if isinstance(self.scale, tuple) else (self.scale,):
            if scale is not None:
                check_number("guidance scale", scale, 0)
        check_choice("held", self.held, HELD)

    def guides(self, stage: int, fine: Sequence[bool], sigma: float) -> bool:
        """True if a step at level `sigma` of a stage is guided. fine: of each stage, whether all its tokens are.

        Raises ValueError for `stages` of another number than the plan's.
        """
        if self.early:
            return not fine[stage] if len(fine) > 1 else 1 - sigma < EARLY
        if self.stages is not None:
            if len(self.stages) != len(fine):
                raise ValueError(f"guidance for {len(self.stages)} stages, but the plan has {len(fine)}")
            return self.stages[stage]
        return self.start <= 1 - sigma + 1e-9 and (1 - sigma < self.end or self.end == 1)

    def factor(self, stage: int, scale: float, none: float = 1.0) -> float:
        """k such that the pipeline's c + (scale - none) (c - u) with u' = c + k (u - c) has the wanted scale."""
        wanted = self.scale[min(stage, len(self.scale) - 1)] if isinstance(self.scale, tuple) else self.scale
        return 1.0 if wanted is None or math.isclose(scale, none) else (wanted - none) / (scale - none)

    @property
    def told(self) -> str:
        """A short name, for reports."""
        if self.early:
            return "early"
        parts = [] if self.stages is None else [f"stages {self.stages}"]
        if (self.start, self.end) != (0.0, 1.0):
            parts.append(f"t {self.start:g} to {self.end:g}")
        shown = {"agreement": self.agreement, "scale": self.scale, "held": self.held}
        return ", ".join([*parts, *(f"{name} {value}" for name, value in shown.items() if value is not None)]) or "all"


def resolve_guidance(spec: str | Guidance | tuple[bool, ...] | None) -> Guidance | None:
    """A name, a tuple for the stages, a config or None -> the config; None for "as the call says".

    "early": in the stages that aren't fine, without stages until t = 0.5; "early:0.65": until that t; "all": as the
    call says. Raises ValueError or TypeError for anything else.
    """
    if spec is None or spec == "all":
        return None
    if isinstance(spec, tuple):
        return Guidance(stages=spec)
    if isinstance(spec, Guidance):
        return spec
    if not isinstance(spec, str):
        raise TypeError(f"guidance must be None, a name, a tuple for the stages or a Guidance(...), got {spec!r}")
    name, _, end = spec.partition(":")
    if name != "early":
        raise ValueError(f"unknown guidance {spec!r}; accepted: None, 'all', 'early', 'early:0.65', Guidance(...)")
    if not end:
        return Guidance(early=True)
    try:
        return Guidance(end=float(end))
    except ValueError as error:
        raise ValueError(f"guidance {spec!r}: after the colon stands a time t from 0 to 1; {error}") from error
