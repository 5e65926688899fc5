"""Plans by name: the published ones (RALU, arXiv 2507.08422), shipped solved, and ours with late ends. Pure numbers.

`RALU.paper(name)` runs published ones as published; `RALU.preset(name)` takes their steps and refined share alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One plan: `steps` per stage, stage `ends` in the paper's time t = 1 - sigma, NT-DM `shifts` and level ratio `z`,
    and the share `ratio` of coarse tokens that the mixed stage refines. `family` is the model it was published for."""

    name: str
    family: str
    steps: tuple[int, ...]
    ends: tuple[float, ...]
    shifts: tuple[float, ...]
    z: float
    ratio: float


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("ralu-4x", "flux", (5, 6, 7), (0.3, 0.45, 1.0), (5.0193, 2.589, 2.2262), 6.3169, 0.3),
        Preset("ralu-5x", "flux", (4, 5, 6), (0.3, 0.45, 1.0), (5.1154, 2.6423, 2.2538), 7.5223, 0.2),
        Preset("ralu-7x", "flux", (2, 3, 5), (0.2, 0.3, 1.0), (8.1457, 2.8548, 2.1932), 6.2612, 0.1),
        Preset("ralu-2x", "sd3", (5, 6, 9), (0.2, 0.3, 1.0), (6.1205, 2.2368, 1.9728), 4.1316, 0.3),
        Preset("ralu-3x", "sd3", (3, 3, 6), (0.25, 0.3, 1.0), (6.4015, 2.6015, 2.2734), 6.2578, 0.2),
    )
}


@dataclass(frozen=True)
class LatePlan:
    """Many coarse steps to a late end, then a few fine ones, the fewest without guidance: for strongly guided calls.

    Chosen at guidance 6 and 4.5 on prompts of their own (`benchmarks/results/regime/search.md`), judged on others
    (`study.md` beside it). `shifts` are a stage's own, so that the levels of the fine stage lie low, or "model": the
    sampler's. guidance: where classifier-free guidance is computed; distilled models have none to leave out, so there a
    plan with "early" is about a fifth slower than its name says.
    """

    name: str
    steps: tuple[int, int]
    ends: tuple[float, float]
    guidance: str
    shifts: tuple[float, float] | str = (3.3, 1.4)
    z: float = 2.2


LATE_PLANS: dict[str, LatePlan] = {
    plan.name: plan
    for plan in (
        LatePlan("ralu-8x", (8, 4), (0.5, 1.0), "all", "model", 3.0),
        LatePlan("ralu-12x", (8, 2), (0.65, 1.0), "all"),
        LatePlan("ralu-15x", (8, 2), (0.65, 1.0), "early"),
        LatePlan("ralu-18x", (8, 1), (0.77, 1.0), "early"),
        LatePlan("ralu-22x", (7, 1), (0.77, 1.0), "early"),
    )
}


def solved(steps: tuple[int, ...], ends: tuple[float, ...]) -> tuple[tuple[float, ...], float] | None:
    """NT-DM's (shifts, z) of a shipped plan with these steps and ends (for the shift 3.0), or None."""
    for preset in PRESETS.values():
        if (preset.steps, preset.ends) == (steps, ends):
            return preset.shifts, preset.z
    return None
