"""`speedup=`: a plan that costs the denoiser at least so many times less than the very call that the user makes.

Two stages, many coarse steps to a late end and a few fine ones, as many as the budget of fine steps allows: what drew
best where few steps break pictures (`benchmarks/results/regime`). Pure numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ralu_cache.plane.spatial import RALU

BASE = RALU.preset("ralu-12x")  # whose steps are divided anew
MOST_COARSE = 16  # more of them add little to what a coarse stage can decide
FINE_SHARE = 0.5  # of the budget, at least one step: so "ralu-8x", "ralu-12x" and "ralu-18x" have it
UNKNOWN = 0.5  # cost of a coarse step in fine ones where the call does not tell its size


def coarse_cost(image_tokens: float, text_tokens: float) -> float:
    """At most what a coarse step costs in fine ones: a quarter of the image's tokens, all of the text's.

    Work that grows with the square of the tokens only makes it cheaper.
    """
    return (image_tokens / 4 + text_tokens) / (image_tokens + text_tokens)


def wanted_speedup(spec: str | float) -> float:
    """4, 4.0 or "4x" -> 4.0. Raises ValueError for anything else than a finite number above 1."""
    try:
        wanted = float(spec.removesuffix("x") if isinstance(spec, str) else spec)
    except (TypeError, ValueError):
        wanted = math.nan
    if isinstance(spec, bool) or not 1 < wanted < math.inf:
        raise ValueError(f'speedup must be a number above 1 such as 4 or "4x", got {spec!r}')
    return wanted


@dataclass(frozen=True)
class Budget:
    """How many times less each call is to cost; its plan is made anew for each."""

    speedup: float

    def __post_init__(self) -> None:
        wanted_speedup(self.speedup)

    def steps(self, num_inference_steps: int, coarse: float) -> tuple[int, int]:
        """(coarse, fine) steps for a call of so many, where a coarse one costs `coarse` fine ones.

        Raises ValueError, naming the most that can be had, where not even one of each is cheap enough.
        """
        budget = num_inference_steps / self.speedup
        if budget < 1 + coarse:
            most = num_inference_steps / (1 + coarse)
            raise ValueError(
                f"speedup={self.speedup:g} can't be had with num_inference_steps={num_inference_steps}: at most "
                f"{most:.1f}x with one coarse and one fine step; ask for less, or for more steps"
            )
        fine = max(1, min(round(FINE_SHARE * budget), math.floor(budget - coarse + 1e-9)))
        low = min(MOST_COARSE, math.floor((budget - fine) / coarse + 1e-9))
        return low, max(fine, math.floor(budget - low * coarse + 1e-9))

    def plan(self, num_inference_steps: int, coarse: float) -> RALU:
        """The plan of one call; the arguments and errors of `steps`."""
        return replace(BASE, steps=self.steps(num_inference_steps, coarse))

    def told(self, num_inference_steps: int) -> str:
        """What to say of it once: nothing here was measured on the user's model."""
        return (
            f"speedup={self.speedup:g}: num_inference_steps={num_inference_steps} are divided into coarse and fine "
            "steps that cost at most this share of the call in full, by FLOPs; how such plans draw was measured on "
            "tiny-flux and tiny-sd3 alone, so look at your own pictures"
        )
