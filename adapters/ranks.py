"""The processes that compute one picture together, each some of its tokens: diffusers' context parallelism.

diffusers splits the token axis of a denoiser's arguments, or of its first block's, and gathers that of its output. What
is kept of the blocks here is whole on every rank; only where it meets the model's own tokens is it split as those are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from diffusers.hooks.context_parallel import EquipartitionSharder, PartitionAnythingSharder
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of a mesh. uneven: the parts of a token axis may differ in length ("anything" in diffusers' options).

    All ranks of the mesh must call a method that communicates (`whole`, `mean`) together.
    """

    mesh: Any
    uneven: bool

    @property
    def count(self) -> int:
        return int(self.mesh.size())

    def own(self, tokens: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of an axis, as diffusers divides it."""
        sharder = PartitionAnythingSharder.shard_anything if self.uneven else EquipartitionSharder.shard
        return sharder(tokens, dim, self.mesh)

    def whole(self, tokens: Tensor, dim: int = 1) -> Tensor:
        """The inverse: the parts of all ranks, on each."""
        if tokens.is_complex():
            return torch.view_as_complex(self.whole(torch.view_as_real(tokens), dim))
        gather = PartitionAnythingSharder.unshard_anything if self.uneven else EquipartitionSharder.unshard
        return gather(tokens, dim, self.mesh)

    def is_own(self, part: Tensor, tokens: Tensor) -> bool:
        """True if one tensor has the shape of this rank's part of another."""
        possible = tokens.ndim > 1 and (self.uneven or tokens.shape[1] % self.count == 0)
        return possible and self.own(tokens).shape == part.shape

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in float32; the same bits on each."""
        total = values.to(torch.float32, copy=True)
        torch.distributed.all_reduce(total, group=self.mesh.get_group())
        return total / self.count


def ranks_of(module: Any) -> Ranks | None:
    """Those among which a model's tokens are divided; None where one process has them all."""
    config = getattr(getattr(module, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        return None
    return Ranks(config._flattened_mesh, config.ulysses_anything or config.ring_anything)
