"""What a branch's ledger says of its residuals: their history, their trends, and how single tokens stand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ralu_cache.history.feature import Feature
from ralu_cache.history.ledger import Ledger
from ralu_cache.history.marks import Mark
from ralu_cache.history.residuals import History, along_trend, slope
from ralu_cache.plane.canvas import TokenLayout

RESIDUAL, TREND = "residual", "trend"


def trend_of(ledger: Ledger, layout: TokenLayout) -> Feature | None:
    """How the residual of every token was changing with sigma; None where nothing was computed twice.

    On the line through its last two values, or what an earlier stage left; EMPTY where it was never computed twice.
    """
    newest, older = (ledger.get(RESIDUAL, layout, place) for place in (0, 1))
    before = ledger.get(TREND, layout)
    if newest is None or older is None:
        return before
    tokens = layout.tokens
    change, known = slope(*((node.sigma, node.values[:, :tokens]) for node in (newest, older)))
    stamps = replace(newest.stamps, mark=newest.mark.masked_fill(~known, Mark.EMPTY))
    whole = torch.cat([change, torch.zeros_like(newest.values[:, tokens:])], 1)
    if before is not None:
        whole[:, :tokens] = torch.where(known[..., None], change, before.values[:, :tokens])
        stamps = replace(stamps, mark=torch.where(known, stamps.mark, before.mark))
    return replace(newest, values=whole, apart=stamps, known=None)


def residual_history(ledger: Ledger, layout: TokenLayout, inherited: bool, by_token: bool) -> History:
    """The residuals of the computed steps, as they may be used now; see `Ledger.history`."""
    history = ledger.history(RESIDUAL, layout, inherited, by_token)
    trend = ledger.get(TREND, layout)
    if trend is None or not history:
        return history
    known = trend.token_levels(inherited=True).isfinite() if by_token else trend.readable(inherited=True)
    return along_trend(history, trend.values, known)


def token_gaps(ledger: Ledger, layout: TokenLayout) -> Tensor:
    """(B, n) float32: the level at which each token was computed last, less that of its computation before.

    0 where there were no two that were made for this very token.
    """
    newest, older = (ledger.get(RESIDUAL, layout, place) for place in (0, 1))
    if newest is None or older is None:
        return torch.zeros(layout.batch, layout.tokens, device=layout.refined.device)
    both = (newest.mark == Mark.VALID) & (older.mark == Mark.VALID)
    return torch.where(both, newest.sigma - older.sigma, 0.0)


def token_changes(ledger: Ledger, layout: TokenLayout) -> Tensor:
    """(B, n) float32: relative change of each token's residual between its two latest computations; 0 before them."""
    newest, older = (ledger.get(RESIDUAL, layout, place) for place in (0, 1))
    assert newest is not None
    if older is None:
        return newest.values.new_zeros(layout.batch, layout.tokens, dtype=torch.float32)
    now, before = (node.values[:, : layout.tokens].float() for node in (newest, older))
    return ((now - before).norm(dim=-1) / before.norm(dim=-1)).nan_to_num()
