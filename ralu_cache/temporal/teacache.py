"""TeaCache (arXiv 2411.19108, code ali-vilab/TeaCache): skip while the model's input has hardly changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ralu_cache.plane.checks import check_integer
from ralu_cache.temporal.base import Accumulating
from ralu_cache.temporal.profile import Curve, read_profile

# Fitted by the authors on FLUX.1-dev at 28 steps, highest power first; smallest value 0.1803, at a change of 0.053.
FLUX = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
COEFFICIENTS = {"flux": FLUX, "identity": (1.0, 0.0)}
AUTO = "auto"  # `ralu_cache.temporal.coefficients` puts what serves the model in its place


@dataclass(frozen=True)
class TeaCache(Accumulating):
    """Reuse the residual while sum of poly(mean|m - m_prev| / mean|m_prev|) < threshold; m: modulated input.

    m is compared with the step before, whether that was computed or reused, as in the published code; unlike there,
    every sample decides for itself.

    Important
        threshold: one number, or one for each stage. Published for FLUX at 28 steps: 0.25, 0.4, 0.6, 0.8 for 1.5x,
            1.8x, 2.0x, 2.25x. With its coefficients a step adds at least 0.18, so 0.18 or less never reuses, and the
            default 0.4 reuses twice in a row at most.
        coefficients: "auto" (`accelerate` takes the profile that lies beside the model, else those published for the
            family, else "identity"; without a pipeline "flux"), "flux", "identity" (distances as they are), the path of
            a profile that `ralu-cache calibrate` wrote for your model (a polynomial for each stage, held at its ends
            outside the range it was fitted on; its last serves all later stages), or your own polynomial, highest power
            first. With a profile, the threshold is how much the model's output may change, by the fit's estimate.
    To tinker with
        order: 1 continues the last two residuals linearly in sigma; 0 reuses the last one, as published. At equal cost,
            on "ralu-4x" with "trend", 1 was 5 dB closer to the uncached run (29.5 against 24.8, 96 pictures), with
            guidance 3 still 3 dB (24.7 against 22.1, twelve; `benchmarks/results/composition`).
        transition: see `ralu_cache.temporal.base.Rules`; "trend" is as "reset" with order 0.
        first, last, compute_stage_end, max_age: see `ralu_cache.temporal.base.Rules`.
    """

    threshold: float | tuple[float, ...] = 0.4
    coefficients: str | tuple[float, ...] = AUTO
    order: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("order", self.order, 0, 1)
        assert self.curves  # what cannot be used is refused now, and a profile is read now, not in mid-run

    @property
    def signal(self) -> str:
        return "modulated"

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """The polynomials, one for each stage; the last serves all later ones."""
        given = "flux" if self.coefficients == AUTO else self.coefficients
        accepted = (
            f"{', '.join(map(repr, (AUTO, *COEFFICIENTS)))}, the path of a profile that `ralu-cache calibrate` wrote"
        )
        if isinstance(given, str) and given not in COEFFICIENTS:
            if not Path(given).is_file():
                raise ValueError(
                    f"coefficients must be {accepted}, or a tuple of finite numbers; there is no file {given!r}"
                )
            return read_profile(given).curves
        try:
            return (Curve(COEFFICIENTS[given] if isinstance(given, str) else given),)
        except ValueError as error:
            raise ValueError(
                f"coefficients must be {accepted}, or a tuple of finite numbers, highest power first, got {given!r}"
            ) from error

    def increment(self, distance: Tensor, stage: int = 0) -> Tensor:
        """The stage's polynomial of the distance."""
        return self.curves[min(stage, len(self.curves) - 1)](distance)
