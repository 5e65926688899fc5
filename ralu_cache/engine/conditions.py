"""How each step was computed: under which conditions, and how often for every sample.

Predictions of unlike conditions do not lie on one line: a callback may have exchanged a prompt, or guidance ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ralu_cache.engine.identity import Identity


class Conditions:
    """The conditions of a run's calls, by number, and those of the present step.

    opening: number and copies of the batch of the call with which the last computed step began; None before there was
    one.
    """

    def __init__(self) -> None:
        self._known: list[tuple[int, Identity]] = []
        self._calls: list[tuple[int, tuple[int, ...]]] = []  # of this step: the condition, and each row's sample
        self._begins: tuple[int, int] | None = None
        self.opening: tuple[int, int] | None = None

    def recognise(
        self, samples: tuple[int, ...], tensors: Mapping[str, Tensor], settings: tuple[Any, ...], watched: bool
    ) -> int:
        """The number of a call's conditions; a new one if it is not known for all of its rows.

        samples: of each row, as numbers within the pipeline's first batch; the rest as `Identity` has it.
        """
        for number, known in self._known:
            if known.is_still(samples, tensors, settings):
                return number
        identity = Identity.of(samples, tensors, settings, watched)
        made = {number for number, _ in self._calls}  # another call of this step: not to be compared, which would wait
        others = ((number, known) for number, known in self._known if number not in made)
        found = (number for number, known in others if identity.rows_in(known) is not None)
        number = next(found, 1 + max((number for number, _ in self._known), default=-1))
        self._known = [(n, known) for n, known in self._known if n != number or known.samples != identity.samples]
        self._known.append((number, identity))
        return number

    def unlike(self, number: int, copies: int) -> bool:
        """True if a step that begins with such a call is not like the last computed one."""
        return self.opening is not None and self.opening != (number, copies)

    def called(self, number: int, copies: int, rows: Sequence[int]) -> None:
        """A call was made for these rows, given by their samples' places in the pipeline's batch."""
        if not self._calls:
            self._begins = number, copies
        self._calls.append((number, tuple(rows)))

    def kinds(self, batch: int) -> list[tuple[int, ...]]:
        """How each sample was computed in this step: the conditions of its rows."""
        return [
            tuple(sorted(number for number, rows in self._calls for row in rows if row % batch == sample))
            for sample in range(batch)
        ]

    def settle(self, batch: int) -> None:
        """The pipeline's own batch is known: what the first call had beyond it were copies."""
        self._known = [
            (number, identity.with_samples([sample % batch for sample in identity.samples]))
            for number, identity in self._known
        ]
        if self._begins is not None:
            self._begins = self._begins[0], sum(len(rows) for _, rows in self._calls[:1]) // batch

    def close_step(self) -> None:
        """The next step begins."""
        if self._calls:
            self.opening = self._begins
        self._calls, self._begins = [], None

    def clear(self) -> None:
        """Hold nothing any more."""
        self._known.clear()
