"""Choosing settings for a model: the planner, which searches all of them jointly, and TeaCache's calibration.

    from ralu_cache.tune import tune
    tune(pipe, ["a red fox", ...], call=dict(num_inference_steps=28), minutes=15)

Uses the library as its users do, through `api`; imports no engine. Never imported by the rooms before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ralu_cache.tune.run import tune

__all__ = ["tune"]


def __getattr__(name: str) -> Any:
    """`tune` loads its module when first used, so that the command line stays light."""
    if name != "tune":
        raise AttributeError(f"module 'ralu_cache.tune' has no attribute {name!r}")
    from ralu_cache.tune.run import tune

    return tune
