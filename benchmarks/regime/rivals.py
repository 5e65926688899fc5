"""Caches of others in the regime's study: at their authors' settings and in a sweep around them, model by model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.regime import reimplemented
from ralu_cache import RALU

reimplemented.register()


@dataclass(frozen=True)
class Cache:
    """spec: as `benchmarks.regime.peers` names it; of a method that was reimplemented from its paper the temporal
    policy, see `benchmarks.regime.reimplemented`, or the plan. steps: asked for."""

    spec: str | RALU
    steps: int = 50
    reimplemented: bool = False


DECIDING: Mapping[str, Cache] = {
    "TeaCache, reimplemented, 0.4": Cache("teacache:0.4", reimplemented=True),
    "TeaCache, reimplemented, 0.4 on 20 steps": Cache("teacache:0.4", 20, reimplemented=True),
    "SeaCache, reimplemented, 0.3": Cache("seacache:0.3", reimplemented=True),
    "SeaCache, reimplemented, 0.3 on 20 steps": Cache("seacache:0.3", 20, reimplemented=True),
}
"""By this library's own policies, alone; diffusers' SeaCache takes neither FLUX nor SD3 nor Wan as they come."""

FLUX: Mapping[str, Cache] = {
    "FirstBlockCache 0.1": Cache("fbcache:0.1"),
    "MagCache 0.3": Cache("magcache:0.3"),
    "TaylorSeer of diffusers, every 5th": Cache("taylorseer-lite:5"),
    "DBCache 0.2": Cache("dbcache:0.2"),
    "DBCache 0.3 with TaylorSeer": Cache("dbcache-taylorseer:0.3"),
    "FirstBlockCache 0.1 on 20 steps": Cache("fbcache:0.1", 20),
    "MagCache 0.3 on 20 steps": Cache("magcache:0.3", 20),
    "TaylorSeer of diffusers, every 3rd of 20 steps": Cache("taylorseer-lite:3", 20),
    "DBCache 0.3 with TaylorSeer on 20 steps": Cache("dbcache-taylorseer:0.3", 20),
    "Spectrum, reimplemented": Cache("spectrum", reimplemented=True),
    "FreqCa, reimplemented, every 5th": Cache("freqca:5", reimplemented=True),
}
FLUX_SWEEP: Mapping[str, Cache] = {
    "FirstBlockCache 0.05": Cache("fbcache:0.05"),  # diffusers' default
    "FirstBlockCache 0.2": Cache("fbcache:0.2"),
    "FirstBlockCache 0.4": Cache("fbcache:0.4"),
    "FirstBlockCache 0.2 on 20 steps": Cache("fbcache:0.2", 20),
    "FirstBlockCache 0.2 on 10 steps": Cache("fbcache:0.2", 10),
    "MagCache 0.06": Cache("magcache:0.06"),  # diffusers' default
    "MagCache 0.24, 5 in a row, warm-up 10 %": Cache("magcache:0.24,skip=5,retention=0.1"),  # its authors', for FLUX
    "MagCache 0.6, 5 in a row, warm-up 10 %": Cache("magcache:0.6,skip=5,retention=0.1"),
    "MagCache 0.12 on 20 steps": Cache("magcache:0.12", 20),
    "MagCache 0.3 on 14 steps": Cache("magcache:0.3", 14),
    "MagCache 0.3 on 10 steps": Cache("magcache:0.3", 10),
    "TaylorSeer of diffusers, every 3rd": Cache("taylorseer-lite:3"),
    "TaylorSeer of diffusers, every 7th": Cache("taylorseer-lite:7"),
    "TaylorSeer of diffusers, every 5th, order 2": Cache("taylorseer-lite:5,order=2"),
    "TaylorSeer of diffusers, every 5th, warm-up 8": Cache("taylorseer-lite:5,warmup=8"),
    "TaylorSeer of diffusers, every 2nd of 14 steps": Cache("taylorseer-lite:2", 14),
    "DBCache 0.08, warm-up 8": Cache("dbcache:0.08,warmup=8"),  # its defaults, but for the blocks in front
    "DBCache 0.12": Cache("dbcache:0.12"),
    "DBCache 0.4": Cache("dbcache:0.4"),
    "DBCache 0.2 on 20 steps": Cache("dbcache:0.2", 20),
    "DBCache 0.12 with TaylorSeer, warm-up 8": Cache("dbcache-taylorseer:0.12,warmup=8"),
    "DBCache 0.2 with TaylorSeer, warm-up 8": Cache("dbcache-taylorseer:0.2,warmup=8"),
    "cache-dit, step mask medium of 28": Cache("dbcache:0.2,mask=medium", 28),
    "cache-dit, step mask ultra of 28": Cache("dbcache:0.2,mask=ultra", 28),
    "Pyramid attention broadcast, every 2nd": Cache("pab:2"),
    "FasterCache, every 2nd": Cache("fastercache:2"),
    "FasterCache, every 4th": Cache("fastercache:4"),
    **DECIDING,
    "RALU as published, 4x": Cache(RALU.paper("ralu-4x"), reimplemented=True),
    "RALU as published, 7x": Cache(RALU.paper("ralu-7x"), reimplemented=True),
    "Spectrum, reimplemented, window grows by 3": Cache("spectrum:3", reimplemented=True),
    "Spectrum, reimplemented, half Taylor": Cache("spectrum:0.75,mix=0.5", reimplemented=True),
    "Spectrum, reimplemented, on 20 steps": Cache("spectrum:0.75", 20, reimplemented=True),
    "FreqCa, reimplemented, every 3rd": Cache("freqca:3", reimplemented=True),
    "FreqCa, reimplemented, every 7th": Cache("freqca:7", reimplemented=True),
    "FreqCa, reimplemented, every 3rd of 20 steps": Cache("freqca:3", 20, reimplemented=True),
}
SD3: Mapping[str, Cache] = {
    "DBCache 0.2": Cache("dbcache:0.2"),
    "DBCache 0.2 on 16 steps": Cache("dbcache:0.2", 16),
}
SD3_SWEEP: Mapping[str, Cache] = {
    "DBCache 0.08, warm-up 8": Cache("dbcache:0.08,warmup=8"),
    "DBCache 0.12": Cache("dbcache:0.12"),
    "DBCache 0.4": Cache("dbcache:0.4"),
    "DBCache 0.4 on 10 steps": Cache("dbcache:0.4", 10),
    "cache-dit, step mask medium of 28": Cache("dbcache:0.2,mask=medium", 28),
    **DECIDING,
    "RALU as published, 2x": Cache(RALU.paper("ralu-2x"), reimplemented=True),
    "RALU as published, 3x": Cache(RALU.paper("ralu-3x"), reimplemented=True),
    "Spectrum, reimplemented": Cache("spectrum", reimplemented=True),
    "FreqCa, reimplemented, every 5th": Cache("freqca:5", reimplemented=True),
}


PEERS: Mapping[str, Mapping[str, Cache]] = {
    "tiny-flux": {**FLUX, **FLUX_SWEEP}, "tiny-flux-dev": {**FLUX, **FLUX_SWEEP}, "tiny-sd3": {**SD3, **SD3_SWEEP},
}  # fmt: skip
"""Caches of diffusers' and of cache-dit's, and what was reimplemented, under strong guidance; on fewer steps than 50
they go as far as the few plain steps that they stand beside. Diffusers' take no SD3, and cache-dit's TaylorSeer fails
there (an assertion of its own in 1.5.3: nothing to forecast the text from)."""

FLUX_GENTLER: Mapping[str, Cache] = {
    "FirstBlockCache 0.2 on 10 steps": Cache("fbcache:0.2", 10),
    "MagCache 0.3 on 20 steps": Cache("magcache:0.3", 20),
    "MagCache 0.3 on 10 steps": Cache("magcache:0.3", 10),
    "TaylorSeer of diffusers, every 3rd of 20 steps": Cache("taylorseer-lite:3", 20),
    "DBCache 0.2 on 20 steps": Cache("dbcache:0.2", 20),
    "Spectrum, reimplemented, on 20 steps": Cache("spectrum:0.75", 20, reimplemented=True),
}
GENTLER: Mapping[str, Mapping[str, Cache]] = {
    "tiny-flux": FLUX_GENTLER, "tiny-flux-dev": FLUX_GENTLER, "tiny-sd3": {},
}  # fmt: skip
"""Those that go farthest, at the guidance that serves few plain steps best."""

FARTHEST = (
    "MagCache 0.3 on 20 steps", "MagCache 0.3 on 14 steps", "MagCache 0.3 on 10 steps",
    "FirstBlockCache 0.2 on 10 steps", "DBCache 0.2 on 16 steps", "DBCache 0.4 on 10 steps",
)  # fmt: skip
"""Those which on the sweep's pictures are on the others' front beyond 4x, or nearest to it: drawn on all pictures."""
