"""What the study of tiny Wan compares: plain steps of three samplers, caches, forecasts, plans of stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.regime.setting import Setting
from ralu_cache import RALU

STRONG, GENTLE = 5.0, 3.0
FULL = "full"
OURS, FEWER, CACHES = "ours", "fewer steps", "caches"
OWN_SHIFT = 2.5  # of the shipped scheduler


@dataclass(frozen=True)
class Method:
    """kind: who offers it. unipc: the pipeline has Wan's released sampler, on which our plans stand as well."""

    setting: Setting
    kind: str = OURS
    unipc: bool = False


def methods() -> Iterator[Method]:
    """The full run first."""
    yield Method(Setting(FULL, STRONG), FEWER)
    for scale in (GENTLE, 7.0):
        yield Method(Setting(f"{FULL} at {scale:g}", scale), FEWER)
    for scale in (STRONG, GENTLE):
        yield from fewer_steps(scale)
    yield from (Method(setting, CACHES) for setting in caches())
    yield from (Method(setting) for setting in ours())
    for name in ("ralu-4x", "ralu-8x", "ralu-12x"):
        yield Method(Setting(f"{name} on UniPC", STRONG, spatial=name), unipc=True)


def fewer_steps(scale: float) -> Iterator[Method]:
    """Stock samplers, and ours for guidance that begins to be left out: everybody's free companion."""
    at = "" if scale == STRONG else f" at {scale:g}"
    for steps in (11, 8, 6, 5, 4, 3):
        yield Method(Setting(f"{steps} plain steps{at}", scale, steps), FEWER)
    for steps in (6, 4):
        yield Method(Setting(f"{steps} plain steps, shift 4{at}", scale, steps, 4.0), FEWER)
        yield Method(Setting(f"{steps} plain steps, guided early{at}", scale, steps, guidance="early"), FEWER)
    for steps in (10, 7, 5, 4, 3):
        yield Method(Setting(f"{steps} steps of UniPC{at}", scale, steps, OWN_SHIFT, "unipc"), FEWER)
    for steps in (7, 5):
        yield Method(Setting(f"{steps} steps of UniPC, shift 4{at}", scale, steps, 4.0, "unipc"), FEWER)
        yield Method(Setting(f"{steps} steps of DPM++2M{at}", scale, steps, OWN_SHIFT, "dpm++2m"), FEWER)


def caches() -> Iterator[Setting]:
    """Caches of diffusers', at its settings and a little around them."""
    for threshold, steps in ((0.1, 50), (0.2, 50), (0.1, 20), (0.2, 11)):
        yield Setting(f"FirstBlockCache {threshold} on {steps} steps", STRONG, steps, peer=f"fbcache:{threshold}")
    for threshold, steps in ((0.1, 50), (0.3, 20), (0.3, 11)):
        yield Setting(f"MagCache {threshold} on {steps} steps", STRONG, steps, peer=f"magcache:{threshold}")
    for interval, steps in ((5, 50), (3, 20)):
        name = f"TaylorSeer of diffusers, every {interval} of {steps} steps"
        yield Setting(name, STRONG, steps, peer=f"taylorseer-lite:{interval}")


def ours() -> Iterator[Setting]:
    """Plans of stages, alone, guided early, with shared regions, with reuse; reuse alone."""
    for name in ("ralu-4x", "ralu-7x", "ralu-8x", "ralu-12x"):
        yield Setting(name, STRONG, spatial=name)
    yield Setting("ralu-15x", STRONG, spatial="ralu-15x")
    yield Setting("ralu-4x, guided early", STRONG, spatial="ralu-4x", guidance="early")
    shared = RALU(steps=(5, 6, 7), ratio=0.3, regions_over_time="shared")
    yield Setting("ralu-4x, regions shared over time", STRONG, spatial=shared)
    yield Setting("ralu-4x as published", STRONG, spatial=RALU.paper("ralu-4x"))
    yield Setting("ralu-4x+seacache:0.4", STRONG, spatial="ralu-4x", temporal="seacache:0.4")
    for steps, spatial, interval in (
        ("1+14", RALU(steps=(1, 14), ends=(0.15, 1.0)), "1/3"),
        ("ralu-4x", "ralu-4x", "1/2/2"),
    ):
        for transition in ("keep", "reset"):
            policy = f"forecast:{interval},quantity=clean,transition={transition}"
            yield Setting(f"{steps}, forecasts, history {transition}", STRONG, spatial=spatial, temporal=policy)
    for policy in ("seacache:0.2", "teacache:0.2", "taylorseer:5", "forecast:3"):
        yield Setting(f"+{policy}", STRONG, temporal=policy)
    for policy, steps in (("seacache:0.4", 20), ("taylorseer:3", 20), ("forecast:2", 20), ("seacache:0.4", 11)):
        yield Setting(f"+{policy} on {steps} steps", STRONG, steps, temporal=policy)
