"""Who a denoiser call computes: the samples of the batch, and what each is conditioned on.

A guidance branch is known by this, not by being the n-th call of a step. Tensors that are the same objects, unwritten,
are the same without a look at them; only where they are others, contents are compared, which waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A tensor as it was: whether it was written to since can be told.

    Tensors made in inference mode count no versions; of these a copy is kept where someone might write.
    """

    tensor: Tensor
    version: int | None
    copy: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, watched: bool) -> Snapshot:
        """watched: a callback of the user's gets to see it."""
        version = None if tensor.is_inference() else tensor._version
        return cls(tensor, version, tensor.clone() if version is None and watched else None)

    @property
    def untouched(self) -> bool:
        """True if nobody wrote to the tensor since."""
        if self.version is not None:
            return self.tensor._version == self.version
        return self.copy is None or torch.equal(self.tensor, self.copy)


@dataclass(frozen=True, eq=False)
class Identity:
    """The samples (numbers within the pipeline's batch) of a call's rows, and their conditioning tensors by name.

    settings: what else tells one call from another with the same conditioning (layers that it leaves out).
    """

    samples: tuple[int, ...]
    tensors: Mapping[str, Snapshot]
    settings: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls, samples: Sequence[int], tensors: Mapping[str, Tensor], settings: tuple[Any, ...], watched: bool
    ) -> Identity:
        return cls(tuple(samples), {name: Snapshot.of(t, watched) for name, t in tensors.items()}, settings)

    def is_still(self, samples: tuple[int, ...], tensors: Mapping[str, Tensor], settings: tuple[Any, ...]) -> bool:
        """True if a call with these is a call of the same rows; looks at no values."""
        if self.samples != samples or self.settings != settings or len(self.tensors) != len(tensors):
            return False
        for name, snapshot in self.tensors.items():
            if tensors.get(name) is not snapshot.tensor or not snapshot.untouched:
                return False
        return True

    def rows_in(self, earlier: Identity) -> list[int] | None:
        """For each row of ours, the row of the earlier call that computed the same; None if not all can be told."""
        if self.settings != earlier.settings or self.tensors.keys() != earlier.tensors.keys():
            return None
        if not all(snapshot.untouched for snapshot in earlier.tensors.values()):
            return None  # what it was is not to be had any more
        found = []
        for row, sample in enumerate(self.samples):
            same = [
                other for other, known in enumerate(earlier.samples)
                if known == sample and other not in found and self._agrees(row, earlier, other)
            ]  # fmt: skip
            if not same:
                return None
            found.append(same[0])
        return found

    def with_samples(self, samples: Sequence[int]) -> Identity:
        return replace(self, samples=tuple(samples))

    def _agrees(self, row: int, earlier: Identity, other: int) -> bool:
        for name, snapshot in self.tensors.items():
            ours, theirs = snapshot.tensor, earlier.tensors[name].tensor
            if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
                return False
            if not torch.equal(_row(ours, row, len(self.samples)), _row(theirs, other, len(earlier.samples))):
                return False
        return True


def _row(tensor: Tensor, row: int, batch: int) -> Tensor:
    """What a tensor has for one sample; one that isn't of the batch's length serves all."""
    return tensor[row] if tensor.ndim and len(tensor) == batch else tensor
