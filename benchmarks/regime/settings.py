"""What the regime's study compares, model by model: each method's shift, interval and scale as searched beforehand.

"strong": all at guidance 6, at which the full run draws as well as at 3 (`benchmarks/results/regime/guidance.md`).
"best": each at the scale and in the interval that serve it best (`benchmarks/results/regime/search.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.regime.setting import Setting
from ralu_cache import RALU, Guidance

STRONG = 6.0
REGIMES = ("strong", "best")
FULL = "full"
THREE_STAGES = RALU(steps=(7, 2, 3), ends=(0.45, 0.6, 1.0), shifts=(3.3, 2.0, 1.4), z=2.2, ratio=0.3)
HELD = Guidance(end=0.65, held="scaled")


@dataclass(frozen=True)
class Best:
    """What the search found for a model. shift: of plain Euler steps; unipc, dpm: of those solvers' steps, strongly
    guided. early: the t until which 8 plain steps are guided. The scales are those of regime "best"."""

    shift: float
    unipc: float
    dpm: float
    early: float
    full_scale: float
    plain_scale: float
    unipc_scale: float
    late_scale: float


FOUND: Mapping[str, Best] = {
    "tiny-flux": Best(2.5, 2.5, 1.5, 0.4, 6.0, 3.0, 2.0, 5.25),
    "tiny-sd3": Best(2.5, 2.5, 1.5, 0.55, 6.0, 3.0, 2.0, 6.0),
}


def strong(model: str, best: Best) -> tuple[Setting, ...]:
    """Everybody at guidance 6, the most important first."""
    plain = {steps: Setting(f"{steps} plain steps", STRONG, steps, best.shift) for steps in (10, 7, 5)}
    early = f"early:{best.early:g}"
    return (
        Setting(FULL, STRONG),
        *(Setting(name, STRONG, spatial=name) for name in ("ralu-8x", "ralu-12x", "ralu-15x", "ralu-18x")),
        plain[7], plain[5],
        Setting(f"8 plain steps, guided until t = {best.early:g}", STRONG, 8, best.shift, guidance=early),
        Setting("7 steps of UniPC", STRONG, 7, best.unipc, "unipc"),
        Setting("7 steps of DPM++2M", STRONG, 7, best.dpm, "dpm++2m"),
        Setting("ralu-15x, difference held and scaled", STRONG, spatial="ralu-15x", guidance=HELD),
        Setting("three stages with regions", STRONG, spatial=THREE_STAGES),
        Setting("ralu-4x", STRONG, spatial="ralu-4x"),
        Setting("taylorseer:3 on 20 steps", STRONG, 20, best.shift, temporal="taylorseer:3"),
        Setting("ralu-8x and teacache", STRONG, spatial="ralu-8x", temporal="teacache"),
        Setting("ralu-8x and seacache", STRONG, spatial="ralu-8x", temporal="seacache"),
        plain[10],
        Setting("5 steps of UniPC", STRONG, 5, best.unipc, "unipc"),
        Setting("ralu-7x", STRONG, spatial="ralu-7x"),
        *(Setting(name, STRONG, steps, peer=spec) for name, (spec, steps) in PEERS[model].items()),
    )  # fmt: skip


PEERS: Mapping[str, Mapping[str, tuple[str, int]]] = {
    "tiny-flux": {
        "FirstBlockCache 0.1": ("fbcache:0.1", 50),
        "MagCache 0.3": ("magcache:0.3", 50),
        "TaylorSeer of diffusers, every 5th": ("taylorseer-lite:5", 50),
        "DBCache 0.2": ("dbcache:0.2", 50),
        "DBCache 0.3 with TaylorSeer": ("dbcache-taylorseer:0.3", 50),
        "FirstBlockCache 0.1 on 20 steps": ("fbcache:0.1", 20),
        "MagCache 0.3 on 20 steps": ("magcache:0.3", 20),
        "TaylorSeer of diffusers, every 3rd of 20 steps": ("taylorseer-lite:3", 20),
        "DBCache 0.3 with TaylorSeer on 20 steps": ("dbcache-taylorseer:0.3", 20),
    },
    "tiny-sd3": {
        "DBCache 0.2": ("dbcache:0.2", 50),
        "DBCache 0.2 on 16 steps": ("dbcache:0.2", 16),
    },
}
"""Caches of diffusers' and of cache-dit's, at thresholds up to which they keep what is drawn, and the steps asked for;
on fewer steps than 50 they go as far as the few plain steps that they stand beside. Diffusers' take no SD3."""


def at_their_best(best: Best) -> tuple[Setting, ...]:
    """Everybody at the scale that serves it best; the full run's is given first."""
    late, plain = best.late_scale, best.plain_scale
    return (
        Setting(FULL, best.full_scale),
        *(Setting(name, late, spatial=name) for name in ("ralu-22x", "ralu-18x")),
        Setting("4 plain steps, guided until t = 0.4", plain, 4, best.shift, guidance="early:0.4"),
        Setting("3 plain steps, guided until t = 0.4", plain, 3, best.shift, guidance="early:0.4"),
        Setting("4 plain steps", plain, 4, best.shift),
        Setting("4 steps of UniPC", best.unipc_scale, 4, best.shift, "unipc"),
        Setting("3 steps of UniPC", best.unipc_scale, 3, best.shift, "unipc"),
    )


FEW = (
    FULL, "ralu-8x", "ralu-12x", "ralu-15x", "ralu-18x", "ralu-22x", "7 plain steps", "5 plain steps",
    "8 plain steps, guided", "7 steps of", "4 plain steps", "3 plain steps", "3 steps of UniPC", "4 steps of UniPC",
)  # fmt: skip


def settings(model: str, regime: str, few: bool = False) -> tuple[Setting, ...]:
    """Those of a regime, the full run first. few: only what the main claims need. Raises ValueError for another one."""
    if model not in FOUND or regime not in REGIMES:
        raise ValueError(f"model {model!r}, regime {regime!r}; accepted: {', '.join(FOUND)}; {', '.join(REGIMES)}")
    found = strong(model, FOUND[model]) if regime == "strong" else at_their_best(FOUND[model])
    wanted = [setting for setting in found if setting.name.startswith(FEW) and " and " not in setting.name]
    return tuple(wanted) if few else found
