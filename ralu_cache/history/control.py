"""Step-size control: how far the next forecast may reach, from how wrong the last ones were (a PI controller).

As ODE solvers with an embedded pair have it (Hairer and Wanner, Solving ODEs II, IV.2), the error of a forecast being
what was computed at its end, compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SAFETY = 0.9
INTEGRAL, PROPORTIONAL = 1.0, 0.3  # over the power of the reach with which errors grow; runs are short, so quicker
GROWTH = (0.3, 4.0)  # least and most that the reach changes by at once


@dataclass(frozen=True)
class Pace:
    """Of one sample: how far in sigma its next forecast may reach, and the error of its last one.

    reach: nan before two steps were computed. error: relative to the tolerance; nan before there was one.
    """

    reach: float = math.nan
    error: float = math.nan

    def after(self, error: float, reach: float, tolerance: float, order: int = 2) -> Pace:
        """Once a forecast that went as far as `reach` was found to be so wrong, relatively.

        order: the power of the reach with which errors grow. An error that isn't a finite number shortens the reach as
        far as one step may.
        """
        ratio = max(error / tolerance, 1e-6) if math.isfinite(error) else math.inf
        if math.isinf(ratio):
            return Pace(reach * GROWTH[0])
        before = ratio if math.isnan(self.error) else self.error
        factor = SAFETY * ratio ** (-INTEGRAL / order) * before ** (PROPORTIONAL / order)
        return Pace(reach * min(max(factor, GROWTH[0]), GROWTH[1]), ratio)

    def gap(self, sigma: float, later: Sequence[float], most: int) -> int:
        """After how many steps, at least 1 and at most `most`, the next one is computed; `later`: levels to come."""
        if math.isnan(self.reach):
            return 1
        within = sum(sigma - level <= self.reach * (1 + 1e-6) for level in later)
        return max(1, min(within, most))
