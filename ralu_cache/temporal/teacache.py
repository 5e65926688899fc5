"""TeaCache (arXiv 2411.19108, code ali-vilab/TeaCache): skip while the model's input has hardly changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ralu_cache.temporal.base import Accumulating, check_choice

# Fitted by the authors on FLUX.1-dev at 28 steps, highest power first; smallest value 0.1803, at a change of 0.053.
FLUX = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
COEFFICIENTS = {"flux": FLUX, "identity": (1.0, 0.0)}


@dataclass(frozen=True)
class TeaCache(Accumulating):
    """Reuse the residual while sum of poly(mean|m - m_prev| / mean|m_prev|) < threshold; m: modulated input.

    m is compared with the step before, whether that was computed or reused, as in the published code; unlike there,
    every sample decides for itself.

    Important
        threshold: one number, or one for each stage. Published for FLUX at 28 steps: 0.25, 0.4, 0.6, 0.8 for 1.5x,
            1.8x, 2.0x, 2.25x. With its coefficients a step adds at least 0.18, so 0.18 or less never reuses, and the
            default 0.4 reuses twice in a row at most.
    To tinker with
        coefficients: "flux", "identity" (distances as they are), or your own polynomial, highest power first.
        first, last, compute_stage_end, transition, max_age: see `ralu_cache.temporal.base.Rules`.
    """

    threshold: float | tuple[float, ...] = 0.4
    coefficients: str | tuple[float, ...] = "flux"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.coefficients, str):
            check_choice("coefficients", self.coefficients, tuple(COEFFICIENTS))
            return
        given = self.coefficients
        numbers = isinstance(given, tuple) and given and all(type(c) in (int, float) for c in given)
        if not numbers or not torch.tensor(given, dtype=torch.float64).isfinite().all():
            raise ValueError(
                f"coefficients must be {', '.join(map(repr, COEFFICIENTS))} or a tuple of finite numbers, highest "
                f"power first, got {given!r}"
            )

    @property
    def signal(self) -> str:
        return "modulated"

    def increment(self, distance: Tensor) -> Tensor:
        """The polynomial, by Horner's rule."""
        given = COEFFICIENTS[self.coefficients] if isinstance(self.coefficients, str) else self.coefficients
        value = torch.zeros_like(distance)
        for coefficient in given:
            value = value * distance + coefficient
        return value
