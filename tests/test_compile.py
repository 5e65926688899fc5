"""`compile_repeated_blocks`: stages take the graphs of stock calls on as many tokens, caching and switching none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch._dynamo.utils import counters

from ralu_cache import RALU, accelerate
from tests.pipelines import SIZES, make_pipeline, pictures

PLAN = RALU(steps=(2, 3, 3))
BLOCKS = 2  # of each kind: more than one, because what is compiled for one must serve all


@pytest.fixture
def compiled() -> Iterator[Any]:
    """A pipeline whose blocks are compiled, each as a whole; a break or too many graphs raise."""
    torch._dynamo.reset()
    counters.clear()
    pipe = make_pipeline()
    sizes = {**SIZES, "num_layers": BLOCKS, "num_single_layers": BLOCKS}
    pipe.transformer = diffusers.FluxTransformer2DModel(in_channels=16, **sizes).eval()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    yield pipe
    torch._dynamo.reset()


def new_graphs(
    pipe: Any, spatial: RALU | None = None, temporal: str | None = None, height: int = 32, width: int = 48
) -> tuple[int, int, bool]:
    """Graphs that a call adds, frames that it makes the compiler look at, whether anything was reused in it."""
    before, frames = counters["stats"]["unique_graphs"], counters["frames"]["total"]
    with accelerate(pipe, spatial=spatial, temporal=temporal) as handle:
        pipe(**pictures([0], height=height, width=width, guidance_scale=1.0))
        report = handle.report
    reused = report is not None and any(step.reused for step in report.steps)
    return counters["stats"]["unique_graphs"] - before, counters["frames"]["total"] - frames, reused


@pytest.mark.slow
def test_graphs_are_those_of_the_stock_blocks(compiled: Any) -> None:
    """The first stage has the tokens of a picture of half the size, the second those of the whole one."""
    assert new_graphs(compiled)[0] > 0 and new_graphs(compiled, height=16, width=24)[0] > 0
    assert new_graphs(compiled, PLAN)[:2] == (0, 0)
    for policy in ("taylorseer:2", "seacache:99"):
        assert new_graphs(compiled, PLAN, policy) == (0, 0, True), policy
    assert new_graphs(compiled)[:2] == (0, 0)
