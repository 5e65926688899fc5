"""What the regime's study compares, model by model: each method's shift, interval and scale as searched beforehand.

"strong": all at guidance 6, at which the full run draws as well as at 3 (`benchmarks/results/regime/guidance.md`).
"best": each at the scale and in the interval that serve it best (`benchmarks/results/regime/search.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.regime.rivals import FARTHEST, GENTLER, PEERS, Cache
from benchmarks.regime.setting import Setting
from ralu_cache import RALU, Guidance

STRONG = 6.0
REGIMES = ("strong", "best")
FULL = "full"
REFERENCE = "150 steps"
SWEPT = 64  # pictures of what no main claim names, and of the reference
THREE_STAGES = RALU(steps=(7, 2, 3), ends=(0.45, 0.6, 1.0), shifts=(3.3, 2.0, 1.4), z=2.2, ratio=0.3)
HELD = Guidance(end=0.65, held="scaled")


@dataclass(frozen=True)
class Best:
    """What the search found for a model. shift: of plain Euler steps; unipc, dpm: of those solvers' steps, strongly
    guided. early: the t until which 8 plain steps are guided; None where guidance is distilled, so that no interval
    saves a call. The scales are those of regime "best"."""

    shift: float
    unipc: float
    dpm: float
    early: float | None
    full_scale: float
    plain_scale: float
    unipc_scale: float
    late_scale: float


FOUND: Mapping[str, Best] = {
    "tiny-flux": Best(2.5, 2.5, 1.5, 0.4, 6.0, 3.0, 2.0, 5.25),
    "tiny-flux-dev": Best(2.5, 1.5, 1.5, None, 6.0, 3.0, 2.0, 5.25),
    "tiny-sd3": Best(2.5, 2.5, 1.5, 0.55, 6.0, 3.0, 2.0, 6.0),
}


def strong(model: str, best: Best) -> tuple[Setting, ...]:
    """Everybody at guidance 6, the most important first."""
    plain = {steps: Setting(f"{steps} plain steps", STRONG, steps, best.shift) for steps in (10, 7, 5)}
    # "ralu-15x" is "ralu-12x" that is guided early: the same one where guidance is distilled
    plans = ("ralu-8x", "ralu-12x", *(("ralu-15x",) if best.early is not None else ()), "ralu-18x")
    return (
        Setting(FULL, STRONG),
        Setting(REFERENCE, STRONG, 150),
        *(Setting(name, STRONG, spatial=name) for name in plans),
        plain[7], plain[5],
        *_by_interval(best),
        Setting("7 steps of UniPC", STRONG, 7, best.unipc, "unipc"),
        Setting("7 steps of DPM++2M", STRONG, 7, best.dpm, "dpm++2m"),
        Setting("three stages with regions", STRONG, spatial=THREE_STAGES),
        Setting("ralu-4x", STRONG, spatial="ralu-4x"),
        Setting("taylorseer:3 on 20 steps", STRONG, 20, best.shift, temporal="taylorseer:3"),
        Setting("ralu-8x and teacache", STRONG, spatial="ralu-8x", temporal="teacache"),
        Setting("ralu-8x and seacache", STRONG, spatial="ralu-8x", temporal="seacache"),
        Setting("toca on 20 steps", STRONG, 20, best.shift, temporal="toca"),
        Setting("ralu-8x and toca", STRONG, spatial="ralu-8x", temporal="toca"),
        plain[10],
        Setting("5 steps of UniPC", STRONG, 5, best.unipc, "unipc"),
        Setting("ralu-7x", STRONG, spatial="ralu-7x"),
        *(_cached(name, STRONG, cache) for name, cache in PEERS[model].items()),
    )  # fmt: skip


def _by_interval(best: Best) -> Iterator[Setting]:
    """What leaves guidance out at some of the steps: nothing to gain where it is distilled."""
    if best.early is not None:
        name = f"8 plain steps, guided until t = {best.early:g}"
        yield Setting(name, STRONG, 8, best.shift, guidance=f"early:{best.early:g}")
        yield Setting("ralu-15x, difference held and scaled", STRONG, spatial="ralu-15x", guidance=HELD)


def _cached(name: str, scale: float, cache: Cache) -> Setting:
    if isinstance(cache.spec, RALU):
        return Setting(name, scale, cache.steps, spatial=cache.spec)
    if cache.reimplemented:
        return Setting(name, scale, cache.steps, temporal=cache.spec)
    return Setting(name, scale, cache.steps, peer=cache.spec)


def at_their_best(model: str, best: Best) -> tuple[Setting, ...]:
    """Everybody at the scale that serves it best; the full run's is given first."""
    late, plain = best.late_scale, best.plain_scale
    guided = () if best.early is None else (4, 3)
    return (
        Setting(FULL, best.full_scale),
        Setting(REFERENCE, best.full_scale, 150),
        *(Setting(name, late, spatial=name) for name in ("ralu-22x", "ralu-18x")),
        *(
            Setting(f"{steps} plain steps, guided until t = 0.4", plain, steps, best.shift, guidance="early:0.4")
            for steps in guided
        ),
        Setting("4 plain steps", plain, 4, best.shift),
        Setting("4 steps of UniPC", best.unipc_scale, 4, best.shift, "unipc"),
        Setting("3 steps of UniPC", best.unipc_scale, 3, best.shift, "unipc"),
        *(stock_sweep(best) if best.early is None else ()),
        *(_cached(name, plain, cache) for name, cache in GENTLER[model].items()),
    )  # fmt: skip


def stock_sweep(best: Best) -> Iterator[Setting]:
    """Where guidance is distilled: stock samplers and our plans by guidance scale, steps and shift, as a front has.

    It is a number that the model was taught, so that every scale may serve another number of steps best.
    """
    for scale in (3.0, 4.5):
        for steps in (10, 7, 5, 3):
            yield Setting(f"{steps} plain steps at {scale:g}", scale, steps, best.shift)
        for name in ("ralu-8x", "ralu-12x", "ralu-18x"):
            yield Setting(f"{name} at {scale:g}", scale, spatial=name)
    for steps in (7, 4):
        for shift in (1.5, 3.5):
            yield Setting(f"{steps} plain steps, shift {shift:g}", best.plain_scale, steps, shift)
    for scale, counts in ((2.0, (7, 5)), (3.0, (7, 5, 4, 3))):
        for steps in counts:
            yield Setting(f"{steps} steps of UniPC at {scale:g}", scale, steps, best.unipc, "unipc")
    for steps in (7, 5, 4):
        yield Setting(f"{steps} steps of DPM++2M at 3", 3.0, steps, best.dpm, "dpm++2m")


FEW = (
    FULL, REFERENCE, "ralu-8x", "ralu-12x", "ralu-15x", "ralu-18x", "ralu-22x", "7 plain steps", "5 plain steps",
    "8 plain steps, guided", "7 steps of", "4 plain steps", "3 plain steps", "3 steps of UniPC", "4 steps of UniPC",
    "10 plain steps", "ralu-4x", "ralu-7x", *FARTHEST,
)  # fmt: skip


def settings(model: str, regime: str, few: bool = False) -> tuple[Setting, ...]:
    """Those of a regime, the full run first. few: only what the main claims need. Raises ValueError for another one."""
    if model not in FOUND or regime not in REGIMES:
        raise ValueError(f"model {model!r}, regime {regime!r}; accepted: {', '.join(FOUND)}; {', '.join(REGIMES)}")
    found = (strong if regime == "strong" else at_their_best)(model, FOUND[model])
    wanted = [setting for setting in found if setting.name.startswith(FEW) and " and " not in setting.name]
    return tuple(wanted) if few else found


def drawn_of(model: str, regime: str, start: int, few: bool = False) -> tuple[Setting, ...]:
    """Those of which the pictures from `start` on are drawn."""
    found = settings(model, regime, few or start >= SWEPT)
    return tuple(setting for setting in found if setting.name != REFERENCE or start < SWEPT)
