"""What settings keep in memory, added up from living tensors, and as FLUX.1-dev would have it."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import torch

from benchmarks.regime.costs import on_flux, size, watched
from ralu_cache import TaylorSeer, accelerate
from tests.pipelines import make_pipeline, pictures


@pytest.fixture(autouse=True)
def frozen() -> None:
    """What other tests left need not be looked through at every call of the denoiser."""
    gc.collect()
    gc.freeze()


def test_what_a_history_holds_is_found_among_the_living_tensors() -> None:
    pipe = make_pipeline()
    pipe(**pictures([0]))
    with watched(pipe) as plain:
        pipe(**pictures([0]))
    with watched(pipe) as cached, accelerate(pipe, temporal=TaylorSeer(4, ramp=False)) as handle:
        pipe(**pictures([0]))
    assert handle.report is not None
    held = handle.report.peak_cached_bytes
    assert plain.samples == cached.samples == 8 and held > 3 * size(plain.peak)
    assert held <= size(cached.peak) < 2 * held, "beside it only tables of positions that the run keeps"


def test_the_same_tensors_of_flux() -> None:
    image, both = ((1, 256, 192), 2), ((1, 272, 192), 2)
    assert on_flux(Counter([image]), False) == 4096 * 3072 * 2
    assert on_flux(Counter([both]), False) == (4096 + 512) * 3072 * 2
    assert on_flux(Counter({image: 8}), True) == 57 * 4096 * 3072 * 2, "one of each of 8 layers"
    assert on_flux(Counter([((1, 256, 16), 4)]), False) == 4096 * 64 * 4, "a canvas"
    assert size(Counter({image: 2})) == 2 * 256 * 192 * 2


def test_a_tensor_counts_once_however_many_see_it() -> None:
    pipe, kept = make_pipeline(), []
    with watched(pipe) as watch:
        hook = pipe.transformer.register_forward_hook(lambda *_: kept.append(torch.zeros(1, 7, 11)))
        pipe(**pictures([0]) | {"num_inference_steps": 2})
        hook.remove()
    views = [one[:, :3] for one in kept]
    assert watch.peak[(1, 7, 11), 4] == 1 and len(views) == 2
