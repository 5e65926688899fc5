"""Calls that several ranks make together: what each of them decides is what all of them decide, and what can't be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ralu_cache.adapters.protocols import Adapter
from ralu_cache.adapters.ranks import Ranks, ranks_of
from ralu_cache.engine.context import current
from ralu_cache.engine.disguise import stock_of
from ralu_cache.plane.regions import refined_count
from ralu_cache.plane.spatial import Stage
from ralu_cache.temporal.policy import Decision, Policy


def common(values: Tensor) -> Tensor:
    """The mean over the ranks that make the present call, the same bits on each; the values where one process does."""
    call = current()
    ranks: Ranks | None = None if call is None else call.ranks
    return values if ranks is None else ranks.mean(values).to(values.dtype)


def agreed(decision: Decision) -> Decision:
    """What all ranks decide: a sample reuses where each of them would let it."""
    call = current()
    if call is None or call.ranks is None:
        return decision
    total = torch.zeros_like(decision.distance) if decision.total is None else decision.total
    columns = torch.stack([decision.reuse.to(torch.float32), decision.distance.float(), total.float()])
    reuse, distance, total = call.ranks.mean(columns)
    return replace(decision, reuse=reuse == 1, distance=distance, total=None if decision.total is None else total)


def check_ranks(transformer: Any, family: type[Adapter], policy: Policy | None, text_attention: bool) -> None:
    """Raise ValueError for what doesn't work on a denoiser whose tokens are divided among ranks.

    policy: reuses something of the model. text_attention: regions are chosen by it.
    """
    if ranks_of(transformer) is None:
        return
    name = stock_of(type(transformer)).__name__
    told = f"the tokens of {name} are divided among ranks (enable_parallelism)"
    if policy is not None and policy.caches != "stack":
        raise ValueError(
            f"{told}, and {type(policy).__name__} keeps {policy.caches!r}, of which no rank has all; use teacache, "
            "seacache, taylorseer or forecast, or Adaptive(ratio=0)"
        )
    if text_attention:
        raise ValueError(
            f"{told}, and no rank sees the attention on all of the text; use other regions, such as regions='canny'"
        )
    if not family.ranked:
        raise ValueError(
            f"{told} in a way that the {family.family} adapter does not know; what works with it: "
            "temporal='forecast:3', which leaves out whole calls"
        )


def check_tokens(
    module: Any, stages: tuple[Stage, ...], grid: tuple[int, int], frames: int, given: Tensor
) -> None:
    """Raise ValueError for stages whose tokens the ranks of a denoiser can't have equally many of.

    grid: (rows, columns) of fine tokens, the frames one below the other. given: what the model is given in full; tokens
    (B, n, d) of reference pictures ride along in it.
    """
    ranks = ranks_of(module)
    if ranks is None or ranks.uneven:
        return
    fine = grid[0] * grid[1]
    others = given.shape[1] - fine if given.ndim == 3 else 0
    cells = fine // (4 * frames)  # of a frame
    for number, stage in enumerate(stages):
        refined = {"coarse": 0, "fine": cells}.get(stage.kind, refined_count(stage.ratio, cells))
        tokens = frames * (cells + 3 * refined) + others
        if tokens % ranks.count:
            raise ValueError(
                f"stage {number} has {tokens} tokens, which {ranks.count} ranks can't have equally many of; use "
                "ContextParallelConfig(ulysses_anything=True) or ring_anything=True, which divide any number, or "
                "another size"
            )
