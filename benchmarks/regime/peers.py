"""The peers' caches in the regime's study: diffusers' own and cache-dit's, through their own APIs.

A peer is "name:value" with options behind commas: "fbcache:0.2", "magcache:0.3,skip=5,retention=0.1",
"taylorseer:5,order=2,warmup=8", "taylorseer-lite:5", "pab:2" and "fastercache:2" of diffusers,
"dbcache:0.2,warmup=8,mask=medium" and "dbcache-taylorseer:0.2" of cache-dit. They hook the blocks' forward, so they
draw with blocks that are not compiled, and their FLOPs are counted as they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from benchmarks import peer_caches
from benchmarks.regime.pictures import scene_prompts

OPTIONS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "fbcache": {},
    "magcache": {"skip": int, "retention": float},
    "taylorseer": {"order": int, "warmup": int},
    "taylorseer-lite": {"order": int, "warmup": int},
    "pab": {},
    "fastercache": {},
    "dbcache": {"warmup": int, "mask": str},
    "dbcache-taylorseer": {"warmup": int, "mask": str},
}
"""What each peer takes beside its value."""


def fresh_for(spec: str) -> bool:
    """True of a peer that needs a pipeline which was not called before: after cache-dit, diffusers' caches fail on the
    same one, and its own, switched on again, breaks pictures that it draws well at first."""
    return spec.startswith("dbcache")


def peer(pipe: Any, spec: str, steps: int, call: dict[str, Any]) -> AbstractContextManager[None]:
    """A peer's cache on the pipeline, for calls of so many steps; call: what they are given but prompts and seeds.

    Raises ValueError for an unknown peer or option.
    """
    name, value, options = parsed(spec)
    if name == "fbcache":
        return peer_caches.first_block_cache(pipe, float(value))
    if name == "magcache":
        ratios = _ratios(pipe, steps, tuple(sorted(call.items())))
        return peer_caches.mag_cache(pipe, float(value), steps, ratios, **options)
    if name == "pab":
        return peer_caches.pyramid_attention(pipe, int(value))
    if name == "fastercache":
        return peer_caches.faster_cache(pipe, int(value))
    if name.startswith("taylorseer"):
        return peer_caches.taylorseer(pipe, int(value), lite=name.endswith("lite"), **options)
    forecast = name != "dbcache"
    return peer_caches.dbcache(pipe, float(value), steps, called_apart(call), forecast, **options)


def parsed(spec: str) -> tuple[str, str, dict[str, Any]]:
    """(name, value, options). Raises ValueError for an unknown peer or option."""
    name, _, rest = spec.partition(":")
    value, *given = rest.split(",")
    if name not in OPTIONS:
        raise ValueError(f"peer {spec!r}; accepted: {', '.join(OPTIONS)}, each with a value as in 'fbcache:0.2'")
    options = {}
    for option in given:
        key, _, text = option.partition("=")
        if key not in OPTIONS[name]:
            raise ValueError(f"peer {spec!r}: {option!r}; accepted: {', '.join(OPTIONS[name]) or 'no options'}")
        options[key] = OPTIONS[name][key](text)
    return name, value, options


def called_apart(call: Mapping[str, Any]) -> bool:
    """Whether the two halves of guidance are calls of their own, as FLUX's are; SD3's are one call's batch, and where
    guidance is distilled there is but one."""
    return call.get("true_cfg_scale", 1.0) > 1


@cache
def _ratios(pipe: Any, steps: int, call: Sequence[tuple[str, Any]]) -> list[float]:
    """MagCache's magnitude ratios on prompts that nothing is reported on."""
    prompts = scene_prompts("train", 4)
    given = {name: value for name, value in call if name not in ("num_inference_steps", "output_type")}
    return peer_caches.calibrate_mag_cache(pipe, steps, **given, prompt=list(prompts), negative_prompt=[""] * 4)
