"""Settings for each of two denoisers of one pipeline, one for high and one for low noise levels (Wan 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXPERTS = ("high", "low")

ByExpert = Mapping[str, Any]
"""What each of them reuses: a name, a config or None; what isn't named reuses nothing."""


def expert_settings(spec: Any) -> ByExpert | None:
    """{"high": "seacache:0.3", "low": "taylorseer:3"}, or the same as "high=seacache:0.3;low=taylorseer:3", with both
    keys; None for a setting that is for any denoiser.

    Raises ValueError for other keys, for one that is there twice, and for none.
    """
    if isinstance(spec, str) and "=" in spec.partition(":")[0]:
        pairs = [part.strip().partition("=") for part in spec.split(";")]
        names, given = [name for name, _, _ in pairs], {name: value for name, _, value in pairs}
    elif isinstance(spec, Mapping):
        names, given = [*spec], dict(spec)
    else:
        return None
    if not names or len(set(names)) < len(names) or not set(names) <= {*EXPERTS}:
        raise ValueError(
            f"temporal={spec!r} must name 'high', 'low' or both, each once: the denoisers for high and low noise "
            'levels, as {"high": "seacache:0.3", "low": "taylorseer:3"} or "high=seacache:0.3;low=taylorseer:3"'
        )
    return {name: None if given.get(name) == "none" else given.get(name) for name in EXPERTS}
