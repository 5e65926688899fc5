"""Worker processes: two single-thread ones that average gradients on a CPU, one on a GPU."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


@dataclass(frozen=True)
class Worker:
    """One of `world` cooperating processes."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all workers, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, number: float) -> float:
        """The lead's value of a number, so that all workers take the same decisions."""
        if self.world == 1:
            return number
        box = torch.tensor([number], dtype=torch.float64)
        dist.broadcast(box, 0)
        return float(box.item())


def launch(function: Callable[..., None], device: str, world: int, *arguments: Any) -> None:
    """Call `function(worker, *arguments)` in `world` processes (this one if it is 1) and wait for all of them."""
    if world < 1:
        raise ValueError(f"world is {world}; at least one worker is needed")
    if world == 1:
        function(Worker(0, 1, torch.device(device)), *arguments)
        return
    if device != "cpu":
        raise ValueError(f"{world} workers on {device!r}: several workers are for the CPU only; use one")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (Path(folder) / "store", world, function, arguments), nprocs=world)


def _enter(rank: int, store: Path, world: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        function(Worker(rank, world, torch.device("cpu")), *arguments)
    finally:
        dist.destroy_process_group()
