"""The batch of a run: which of the pipeline's samples, as they were at the first step, are there still, and where."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Batch:
    """numbers: of each place in the pipeline's batch, its sample's number at the first step. rows: of a denoiser call.

    The first call may be a stack of copies of the batch; it is `settled` once the scheduler has told them from it.
    unguided: numbers of the samples whose predictions, with and without the prompt, agreed.
    """

    def __init__(self) -> None:
        self.numbers: tuple[int, ...] = ()
        self.rows = 0
        self.settled = False
        self.unguided: set[int] = set()

    def open(self, rows: int, settled: bool = False) -> None:
        """First sight of the batch, by a denoiser call on so many rows or, `settled`, by the scheduler."""
        self.numbers, self.rows, self.settled = tuple(range(rows)), rows, settled

    def settle(self, size: int) -> None:
        """The pipeline has so many samples; what a call had beyond them were copies, in order."""
        self.numbers, self.settled = tuple(range(size)), True

    def keep(self, places: Sequence[int]) -> None:
        """Only the samples at these places are left."""
        self.numbers = tuple(self.numbers[place] for place in places)

    def left_of(self, latents: Tensor, before: Tensor | None) -> list[int] | None:
        """The places whose samples are still there in a call of another number of rows; None if all are.

        latents: (rows, ...) of the call; before: (B, ...) that the last step led to, if there was one. Raises
        ValueError for a call on rows of which that can't be told.
        """
        rows, own, most = latents.shape[0], len(self.numbers), max(self.rows, 1)
        self.rows = rows
        if not self.settled:
            return None
        same = [] if before is None else agreements(latents, before)
        if rows % own == 0 and (not same or all(row[place % own] for place, row in enumerate(same))):
            return None  # copies of all of it: guidance that began or ended
        kept = survivors(same, rows * own // most)
        if kept is None:
            raise ValueError(
                f"a batch of {own} pictures became a call on {rows} in mid-run, and which of them these are cannot be "
                "told; drop samples of `latents` without changing the others"
            )
        return kept


def agreements(rows: Tensor, earlier: Tensor) -> list[list[bool]]:
    """Which of `rows` (k, ...) equals which of `earlier` (B, ...), bit for bit; all False for unlike shapes."""
    if rows.shape[1:] != earlier.shape[1:]:
        return [[False] * len(earlier)] * len(rows)
    return (rows[:, None] == earlier[None].to(rows.dtype)).flatten(2).all(2).tolist()


def survivors(same: Sequence[Sequence[bool]], likely: int) -> list[int] | None:
    """The earlier samples that a call's rows are, without their copies, given `agreements`; None if none fit.

    likely: how many there are if each is copied as often as before, which is tried first.
    """
    rows = len(same)
    for count in sorted((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: (n != likely, n)):
        kept: list[int] = []
        for row in same[:count]:
            kept += [number for number, equal in enumerate(row) if equal and number not in kept][:1]
        if len(kept) == count and all(row[kept[place % count]] for place, row in enumerate(same)):
            return kept
    return None
