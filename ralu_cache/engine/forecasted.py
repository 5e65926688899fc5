"""Calls of which some samples are not computed: which rows run, and what the pipeline is given for the others.

For a sample that is forecast, a pipeline that guides is given the forecast for both of its predictions, so its formula
gives the forecast (see `ralu_cache.engine.guided`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ralu_cache.adapters.base import Adapter
from ralu_cache.engine.guided import Pair
from ralu_cache.engine.run import Run


@dataclass(frozen=True)
class Forecasted:
    """One call in which some samples are forecast.

    index: the rows of the call that are computed. rows: the sample of each row that is to be filled in again, the
    computed ones of them `kept`; `ahead` computed rows come before those, which are a guided pair's own.
    """

    index: tuple[int, ...]
    rows: tuple[int, ...]
    kept: tuple[int, ...]
    ahead: int
    dropped: int

    @classmethod
    def of(cls, rows: Sequence[int], pair: Pair | None, skipped: frozenset[int]) -> Forecasted | None:
        """rows: the sample of each row of the call; skipped: those that are forecast. None if all are computed.

        Of a pair whose call is without the prompt alone, the guided samples are computed and the rest follow from c.
        """
        if not skipped or (pair is not None and not pair.stacked):
            return None
        ahead = () if pair is None or pair.index is None else tuple(pair.index[: sum(pair.guided)])
        filled = range(len(rows) // 2, len(rows)) if pair is not None else range(len(rows))
        kept = tuple(row for row in filled if rows[row] not in skipped)
        return cls(
            (*ahead, *kept), tuple(rows[row] for row in filled), tuple(row - filled[0] for row in kept), len(ahead),
            len(filled) - len(kept),
        )  # fmt: skip

    def filled(self, prediction: Tensor, adapter: Adapter, run: Run, hidden: Tensor) -> Tensor:
        """The prediction of all rows, the forecasts among those that were computed; hidden: the model's input."""
        standing = stood_in(adapter, run, hidden, self.rows).to(prediction.dtype)
        if prediction.ndim == 3:  # others, which the pipeline drops, have no forecast
            count = standing.shape[1]
            prediction = prediction[:, -count:] if adapter.others_first else prediction[:, :count]
        ahead, computed = prediction[: self.ahead], iter(prediction[self.ahead :])
        found = [next(computed) if row in self.kept else standing[row] for row in range(len(self.rows))]
        return torch.cat([ahead, torch.stack(found)])


def stood_in(adapter: Adapter, run: Run, hidden: Tensor, rows: Sequence[int]) -> Tensor:
    """Forecasts in the form of the model's predictions, of the samples `rows`; hidden: its input."""
    given = adapter.from_image(run.forecast().to(hidden.dtype), hidden)
    return torch.stack([given[row] for row in rows])
