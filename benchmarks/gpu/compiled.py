"""`compile_repeated_blocks`: latency in the same mode, and how many graphs it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.contestants import Contestant
from benchmarks.gpu.latency import measure
from benchmarks.gpu.timing import Deadline


def backend_for(device: torch.device) -> str:
    """Inductor on a GPU; on a CPU, where this is a smoke test, the graphs without code of their own."""
    return "inductor" if device.type == "cuda" else "aot_eager"


@contextmanager
def compiled_blocks(transformer: Any, backend: str) -> Iterator[None]:
    """The repeated blocks compiled, each as one graph without a break; afterwards as they were."""
    torch._dynamo.reset()
    if transformer._repeated_blocks:
        transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    else:  # SD3 does not say which they are; this is what the method does
        for block in transformer.transformer_blocks:
            block.compile(fullgraph=True, backend=backend)
    try:
        yield
    finally:
        for module in transformer.modules():
            module._compiled_call_impl = None
        torch._dynamo.reset()


def graphs_so_far() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def compiled(
    pipe: Any, chosen: Sequence[Contestant], call: dict[str, Any], rounds: int, deadline: Deadline
) -> dict[str, Any]:
    """Latency of those who can be compiled; graphs of stock runs, of all first calls, and of later ones.

    A stock run takes one graph for each kind of block, and more where blocks of a kind are not all given the same
    (FLUX's single ones: other strides). At a first and at a second token count, which is a picture of half the size,
    it takes `graphs_of_stock`; any run may take as many at its own.
    """
    some = [contestant for contestant in chosen if contestant.compiles]
    with compiled_blocks(pipe.transformer, backend := backend_for(pipe.transformer.device)):
        before = graphs_so_far()
        stock = measure(pipe, some[:1], call, 0, "compiled, stock", deadline)
        one = graphs_so_far() - before
        half = {**call, **{side: call[side] // 2 for side in ("height", "width")}, "num_inference_steps": 1}
        pipe(**half)
        other = graphs_so_far() - before - one
        first = measure(pipe, some[1:], call, 0, "compiled, first calls", deadline)
        graphs = graphs_so_far() - before
        later = measure(pipe, some, call, rounds, "compiled", deadline)
        again = graphs_so_far() - before - graphs
    counts = {count for row in later.rows for count in row["token_counts"]}
    return {
        "rows": later.rows, "rounds": later.rounds, "backend": backend,
        "first_seconds": stock.first_seconds | first.first_seconds, "graphs": graphs, "graphs_of_stock": (one, other),
        "graphs_of_later_calls": again, "token_counts": sorted(counts),
    }  # fmt: skip
