"""Forecasts: what the residual of the block stack would be now, from earlier ones. Pure tensors; sigma 1 is noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SMALLEST_GAP = 1e-5  # levels closer than this count as one: float32 keeps too few digits of their difference
DAMPING = 0.4
"""How much of a token's trend goes on behind a transition.

Chosen on the embedded model (`benchmarks/results/composition/damping.md`): pictures take more than this going into the
mixed stage, but some lose by it going into the fine one; at 0.4 no policy that was tried loses on average.
"""

History = Sequence[tuple[Tensor, Tensor]]


def extrapolate(history: History, sigma: float, order: int) -> Tensor:
    """The polynomial in sigma of degree `order` through the newest values, at `sigma`.

    history: (level (B,) or (B, n), values (B, n, d)), newest first; levels differ from sample to sample because samples
    decide for themselves, and from token to token where some were computed alone. Each uses its newest values up to the
    first whose level is nan or equal to an earlier one: too few, and its degree is lower; the newest alone stays as it
    is, bit for bit. Equals TaylorSeer's forecast (arXiv 2503.06923) for order 1; above that its finite differences,
    made for even steps, are not exact, and these divided differences are. Result (B, n, d), dtype of the newest. Raises
    ValueError for an empty history.
    """
    if not history:
        raise ValueError("nothing to extrapolate from: the history is empty")
    newest = history[0][1]
    nodes = history[: order + 1]
    if len(nodes) == 1:
        return newest
    result: Tensor | None = None
    for weight, (_, values) in zip(_weights(torch.stack([level for level, _ in nodes]), sigma), nodes, strict=True):
        weight = weight.view(*weight.shape, *(1,) * (values.ndim - weight.ndim))
        part = torch.where(weight == 0, 0.0, weight * values.to(torch.promote_types(values.dtype, torch.float32)))
        result = part if result is None else result + part
    assert result is not None
    return narrowed(result, newest.dtype)


def extrapolate_uniform(nodes: Sequence[tuple[float, Tensor]], sigma: float) -> Tensor:
    """`extrapolate` through all nodes, (level, values (B, n, d)) newest first, whose levels the host knows.

    One level serves all samples and tokens of a node. The same values bit for bit, without the device's part in the
    weights. Raises ValueError for no nodes.
    """
    if not nodes:
        raise ValueError("nothing to extrapolate from: the history is empty")
    newest = nodes[0][1]
    if len(nodes) == 1:
        return newest
    weights = uniform_weights(tuple([level for level, _ in nodes]), sigma)
    used = [(weight, values) for weight, (_, values) in zip(weights, nodes, strict=True) if weight]
    if newest.dtype not in (torch.float32, torch.float64):
        used = [(weight, values.float()) for weight, values in used]
    result = used[0][0] * used[0][1]
    for weight, values in used[1:]:
        result += weight * values
    return narrowed(result, newest.dtype)


@lru_cache(maxsize=256)
def uniform_weights(levels: tuple[float, ...], sigma: float) -> tuple[float, ...]:
    """The Lagrange weights of nodes at `levels`, newest first; 0 for nodes that are not used.

    In float32, as `extrapolate` has them bit for bit, but by the host alone.
    """
    at, nodes, used = np.float32(sigma), [np.float32(level) for level in levels], 0
    while used < len(nodes) and all(abs(nodes[used] - node) > SMALLEST_GAP for node in nodes[:used]):
        used += 1
    weights = [0.0] * len(nodes)
    for place in range(used):
        weight = np.float32(1.0)
        for other in range(used):
            if other != place:
                weight = weight * ((at - nodes[other]) / (nodes[place] - nodes[other]))
        weights[place] = float(weight)
    return tuple(weights)


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` in a dtype that may hold less: what is finite stays so, at the end of float16's range if need be."""
    if values.dtype == dtype:
        return values
    if dtype == torch.float16:
        values = values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return values.to(dtype)


def slope(newest: tuple[Tensor, Tensor], older: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Change of each token's values with sigma: two nodes (level (B, n), values (B, n, d)), and where it is known.

    Returns ((B, n, d) of at least float32, for half precision could not hold it, (B, n) bool); zero and False where a
    level is nan or both are the same.
    """
    gap = newest[0] - older[0]
    known = gap.abs() > SMALLEST_GAP  # False for nan
    wide = torch.promote_types(newest[1].dtype, torch.float32)
    change = (newest[1].to(wide) - older[1].to(wide)) / torch.where(known, gap, 1.0)[..., None]
    return torch.where(known[..., None], change, 0.0), known


def along_trend(history: History, trend: Tensor, known: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A history (see `extrapolate`) whose second node, where there is none, lies on the damped `trend` (B, n, d).

    trend: change of the values with sigma, where it is `known`, bool and of the levels' shape. So what was computed
    only once since a transition is forecast linearly; without a trend it stays as it is, bit for bit.
    """
    (level, values), *older = history
    second = torch.where(known, level + 1, torch.nan), values + DAMPING * trend
    if older:
        missing = older[0][0].isnan()
        at = missing.view(*missing.shape, *(1,) * (values.ndim - missing.ndim))
        second = torch.where(missing, second[0], older[0][0]), torch.where(at, second[1], older[0][1])
    return [history[0], second, *older[1:]]


def _weights(levels: Tensor, sigma: float) -> Tensor:
    """Lagrange weights of nodes at `levels`, (K, B) or (K, B, n) both, newest first; 0 for nodes that are not used."""
    used = torch.ones_like(levels, dtype=torch.bool)
    for k in range(1, len(levels)):
        apart = (levels[:k] - levels[k]).abs() > SMALLEST_GAP  # False for nan
        used[k] = used[k - 1] & apart.all(0)
    rows = []
    for k, level in enumerate(levels):
        others = torch.cat([levels[:k], levels[k + 1 :]])
        both = torch.cat([used[:k], used[k + 1 :]]) & used[k]
        ratio = torch.where(both, (sigma - others) / (level - others), 1.0)
        rows.append(torch.where(used[k], ratio.prod(0), 0.0))
    return torch.stack(rows)
