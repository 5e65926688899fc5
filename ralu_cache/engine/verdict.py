"""Verdicts: what a policy decided for one call, on the host, and the groups of samples that share a fate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ralu_cache.history.feature import Counts
from ralu_cache.history.ledger import Samples
from ralu_cache.history.marks import Mark
from ralu_cache.report.steps import BranchRecord
from ralu_cache.temporal.policy import Decision


@dataclass(slots=True, eq=False)
class Group:
    """Samples of one call that share a decision.

    samples: which of the batch, None for all. residual: (k, n, d) to be added in place of running the blocks, None if
    the blocks run. tokens: (k, m) int64, those for which the blocks run nevertheless; of the m, each sample means
    `counts`, and repeats the first to fill up.
    """

    samples: Samples | None = None
    residual: Tensor | None = None
    tokens: Tensor | None = None
    counts: tuple[int, ...] = ()

    @property
    def rows(self) -> Tensor | None:
        """(k,) int64 indices into the batch, None for all."""
        return None if self.samples is None else self.samples.rows

    @property
    def computes(self) -> bool:
        """True if the blocks run, for all tokens or for some."""
        return self.residual is None or self.tokens is not None


COMPUTED = Group()  # of all samples


class Verdict(NamedTuple):
    """A decision on the host; reading it is the one time per call that the device is waited for.

    kinds: "computed", "partial" or "reused" for each sample. fresh: how many tokens of a partial one are computed.
    mended: how many of those were not VALID before.
    """

    kinds: tuple[str, ...]
    fresh: tuple[int, ...]
    mended: tuple[int, ...]
    distance: tuple[float, ...]
    total: tuple[float, ...]
    threshold: float

    @classmethod
    def read(cls, decision: Decision, fresh: Tensor | None = None, valid: Tensor | None = None) -> Verdict:
        """fresh, valid: (B, n) bool, the tokens to compute in samples that reuse, and those VALID before."""
        nothing = [0.0] * len(decision.reuse)
        columns = [decision.reuse, decision.distance] + ([] if decision.total is None else [decision.total])
        counted = [] if fresh is None or valid is None else [fresh.sum(1), (fresh & ~valid).sum(1)]
        reuse, distance, *others = _on_host([*columns, *counted])
        total = others.pop(0) if decision.total is not None else []
        counts, mended = ([int(count) for count in column] for column in others or [nothing] * 2)
        size = 0 if fresh is None else fresh.shape[1]
        kinds = tuple(_kind(bool(r), count, size) for r, count in zip(reuse, counts, strict=True))
        counts = [count if kind == "partial" else 0 for count, kind in zip(counts, kinds, strict=True)]
        return cls(kinds, tuple(counts), tuple(mended), tuple(distance), tuple(total), decision.threshold)

    def samples(self, kind: str, device: torch.device) -> Samples:
        """The samples of a kind."""
        return Samples.of([row for row, found in enumerate(self.kinds) if found == kind], device)


@lru_cache(maxsize=64)
def counted(reuse: tuple[bool, ...]) -> Verdict:
    """The verdict of a policy that counts, on whole samples: the host knows it without asking."""
    nothing = (0,) * len(reuse)
    kinds = tuple("reused" if reused else "computed" for reused in reuse)
    return Verdict(kinds, nothing, nothing, (math.nan,) * len(reuse), (0.0,) * len(reuse), math.nan)


def branch_record(
    verdict: Verdict, found: Counts, left: Counts, held: int, flops: float, saved_flops: float
) -> BranchRecord:
    """The record of one call, from what was noted of it; found, left: marks before and after."""
    before, after = (tuple(sum(column) for column in zip(*counts, strict=True)) for counts in (found, left))
    return BranchRecord(
        reused=tuple(kind == "reused" for kind in verdict.kinds),
        fresh=verdict.fresh,
        distance=verdict.distance,
        threshold=verdict.threshold,
        empty=after[Mark.EMPTY],
        inherited=after[Mark.INHERITED],
        valid=after[Mark.VALID],
        cached_bytes=held,
        found=(before[Mark.EMPTY], before[Mark.INHERITED], before[Mark.VALID]),
        total=verdict.total,
        flops=flops,
        saved_flops=saved_flops,
    )


def _on_host(columns: list[Tensor]) -> list[list[float]]:
    """The values of some (B,) tensors, read in one go from each device."""
    if all(column.device.type == "cpu" for column in columns):
        return [column.tolist() for column in columns]
    found: dict[int, list[float]] = {}
    for device in {column.device for column in columns}:
        places = [place for place, column in enumerate(columns) if column.device == device]
        values = torch.stack([columns[place].to(torch.float32) for place in places]).tolist()
        found |= dict(zip(places, values, strict=True))
    return [found[place] for place in range(len(columns))]


def _kind(reuse: bool, fresh: int, tokens: int) -> str:
    if not reuse or (tokens and fresh == tokens):
        return "computed"
    return "partial" if fresh else "reused"


def indices_of(chosen: Tensor, counts: tuple[int, ...]) -> Tensor:
    """(k, n) bool, so many True in each row -> (k, max(counts)) int64 in order, short rows filled with their first."""
    index = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
    if len(set(counts)) == 1:
        return index
    meant = torch.arange(index.shape[1], device=index.device) < chosen.sum(1, keepdim=True)
    return torch.where(meant, index, index[:, :1])
