"""diffusers' context parallelism: two processes of one picture decide alike, and draw what one of them draws.

Two `gloo` processes on the CPU run diffusers' own Ulysses attention. Its ring attention needs a flash kernel, which the
CPU hasn't, and so is not run here; it divides the tokens in the same way. `gloo` gathers parts of equal size alone.
"""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from torch import Tensor

from ralu_cache import RALU, Adaptive, Forecast, SeaCache, TaylorSeer, TeaCache, ToCa, accelerate
from ralu_cache.adapters import flux, wan
from ralu_cache.adapters.ranks import Ranks, ranks_of
from ralu_cache.engine import ranked
from ralu_cache.plane.regions import refined_count
from ralu_cache.plane.spatial import Stage
from ralu_cache.temporal.policy import Decision
from tests.pipelines import make_pipeline, pictures, random_image
from tests.pipelines_flux2 import flux2_pictures, make_flux2_pipeline
from tests.pipelines_flux_kin import make_chroma_pipeline
from tests.pipelines_qwen import make_qwen_pipeline, qwen_pictures
from tests.wan_pipelines import make_wan_pipeline, videos

COUNT, SECONDS = 2, 120
SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 6}
PLAN = RALU(steps=(2, 2, 2), ratio=0.25)
TEACACHE = TeaCache(0.5, "identity", last=0, compute_stage_end=False)
FLUX = make_pipeline, partial(pictures, (0, 1), **SMALL, true_cfg_scale=2.5)
KONTEXT = partial(make_pipeline, diffusers.FluxKontextPipeline), partial(
    pictures, (0,), **SMALL, image=random_image(32, 32), max_area=32 * 48, _auto_resize=False
)
QWEN = make_qwen_pipeline, partial(qwen_pictures, (0, 1), **SMALL, true_cfg_scale=2.5)
EDIT = partial(make_qwen_pipeline, diffusers.QwenImageEditPipeline, processor=None), partial(
    qwen_pictures, (0,), **SMALL, image=random_image(32, 48)
)
WAN = make_wan_pipeline, partial(videos, (0, 1), num_inference_steps=6)
FLUX2 = make_flux2_pipeline, partial(flux2_pictures, (0, 1), **SMALL)
Case = tuple[tuple[Callable[..., Any], Callable[[], dict[str, Any]]], dict[str, Any]]
CASES: dict[str, Case] = {
    "flux": (FLUX, {"spatial": PLAN, "temporal": TaylorSeer(2, transition="inherit"), "guidance": "early"}),
    "flux, canvas": (FLUX, {"temporal": SeaCache(0.6), "solver": "multistep"}),
    "kontext": (KONTEXT, {"spatial": PLAN, "temporal": TEACACHE}),
    "qwen": (QWEN, {"spatial": PLAN, "temporal": TEACACHE}),
    "qwen, edit": (EDIT, {"spatial": PLAN}),
    "wan": (WAN, {"spatial": PLAN, "temporal": Adaptive(2)}),
    "wan, predictions": (WAN, {"temporal": SeaCache(0.6, reuse="prediction")}),
    "flux2": (FLUX2, {"spatial": PLAN, "temporal": SeaCache(2.0, last=0, compute_stage_end=False)}),
    "flux, verified": (FLUX, {"temporal": Forecast(tolerance=5.0, order=0)}),
    "wan, forecast": (WAN, {"temporal": "forecast:3"}),
    "flux, probed": (FLUX, {"temporal": TEACACHE}),
    "wan, probed": (WAN, {"temporal": TaylorSeer(2)}),
}


@contextmanager
def known(name: str) -> Iterator[None]:
    """Within it no adapter knows the pipeline of a probed case."""
    families = {"flux, probed": flux.FluxAdapter, "wan, probed": wan.WanAdapter}
    if name not in families:
        yield
        return
    with mock.patch.object(families[name], "pipelines", ()):
        yield


def parallel(pipe: Any) -> Any:
    """The pipeline, its tokens divided among the processes. diffusers takes the CPU for an accelerator, of which there
    are none."""
    with mock.patch("torch.accelerator.device_count", lambda: 1):
        config = ContextParallelConfig(ulysses_degree=COUNT, ulysses_anything="Wan" not in type(pipe).__name__)
        pipe.transformer.enable_parallelism(config=config)
    return pipe


def drawn(case: Case, pipe: Any) -> tuple[Tensor, list[tuple[int, int]]]:
    """The latents, and how many samples each step computed and reused."""
    (_, arguments), settings = case
    with accelerate(pipe, **settings) as handle:
        latents = pipe(**arguments(), return_dict=False)[0]
    assert handle.report is not None and handle.report.completed
    return latents, [(step.computed, step.reused) for step in handle.report.steps]


def checked(rank: int) -> dict[str, Any]:
    """What one of the processes finds, by case."""
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        with known(name):
            mine, steps = drawn(case, parallel(case[0][0]()))
            others = [torch.empty_like(mine) for _ in range(COUNT)]
            dist.all_gather(others, mine.contiguous())
            found[name] = {"alike": torch.equal(*others), "steps": steps}
            if not rank:
                one, alone = drawn(case, case[0][0]())
                found[name] |= {"far": float((mine - one).abs().max()), "alone": alone}
    found["agreed"] = agreement(rank)
    return found


def agreement(rank: int) -> tuple[list[bool], list[float], list[float]]:
    """What two processes decide that would decide otherwise each for itself."""
    pipe = parallel(make_pipeline())
    with accelerate(pipe, temporal="teacache") as handle, handle.call():
        alone = Decision(torch.tensor([True, rank == 0]), torch.tensor([0.25, 0.5 + rank]), 1.0)
        decision = ranked.agreed(alone)
        return decision.reuse.tolist(), decision.distance.tolist(), ranked.common(torch.tensor([float(rank)])).tolist()


def worker(rank: int, store: str, results: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=COUNT)
        with mock.patch.object(pipeline_qwenimage_edit, "calculate_dimensions", lambda *_: (24, 16, None)):
            results.put((rank, checked(rank)))
        dist.destroy_process_group()
    except BaseException:  # told in the test's own process
        results.put((rank, traceback.format_exc()))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found; they are forked, for importing it all anew takes longer than all of this."""
    context, store = multiprocessing.get_context("fork"), tmp_path_factory.mktemp("ranks") / "store"
    results = context.Queue()
    processes = [context.Process(target=worker, args=(rank, str(store), results), daemon=True) for rank in range(COUNT)]
    for process in processes:
        process.start()
    try:
        told: dict[int, Any] = {}
        while len(told) < COUNT:
            rank, result = results.get(timeout=SECONDS)
            assert not isinstance(result, str), result
            told[rank] = result
        return [told[rank] for rank in range(COUNT)]
    finally:
        for process in processes:
            process.join(5)
            process.kill()


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_draw_what_one_draws(found: list[dict[str, Any]], name: str) -> None:
    """To what float32 rounds, for attention and sums go in another order; the same decisions, step by step."""
    first, second = (each[name] for each in found)
    assert first["alike"] and second["alike"], "the same bits on both"
    assert first["steps"] == second["steps"] == first["alone"]
    assert first["far"] < 2e-5
    if "temporal" in CASES[name][1]:
        assert any(reused for _, reused in first["steps"])


def test_ranks_decide_together(found: list[dict[str, Any]]) -> None:
    """Reuse where both would, distances that are means."""
    assert found[0]["agreed"] == found[1]["agreed"] == ([True, False], [0.25, 1.0], [0.5])


class Parts:
    """A mesh of three, of which this process is the first."""

    def size(self) -> int:
        return 3


def divided(pipe: Any, **options: bool) -> Any:
    """The pipeline as it looks once its tokens are divided among three ranks."""
    config = ContextParallelConfig(ulysses_degree=3, **options)
    config._flattened_mesh = Parts()  # type: ignore[assignment]
    pipe.transformer._parallel_config = diffusers.ParallelConfig(context_parallel_config=config)
    return pipe


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (make_pipeline, {"temporal": ToCa(3, 0.4)}, r"divided among ranks.*ToCa keeps 'layers\+rows'.*seacache"),
        (make_pipeline, {"temporal": Adaptive(2, ratio=0.3)}, "keeps 'rows', of which no rank has all"),
        (make_pipeline, {"temporal": TaylorSeer(3, per_layer=True)}, "TaylorSeer keeps 'layers'"),
        (make_pipeline, {"spatial": RALU(steps=(2, 2, 2), regions="text-attention")}, "regions='canny'"),
        (make_chroma_pipeline, {"spatial": PLAN}, "the chroma adapter does not know.*forecast:3"),
        (make_chroma_pipeline, {"temporal": TEACACHE}, "the chroma adapter does not know"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], Any], settings: dict[str, Any], told: str) -> None:
    pipe = divided(make())
    with pytest.raises(ValueError, match=told):
        accelerate(pipe, **settings)
    assert not pipe.transformer._forward_pre_hooks and "Accelerated" not in type(pipe).__name__
    accelerate(pipe, temporal="forecast:3").disable()


def test_stages_that_do_not_divide_are_refused_before_the_first_step() -> None:
    pipe = divided(make_pipeline())
    with accelerate(pipe, spatial=RALU(steps=(2, 2, 2), ratio=0.3)), pytest.raises(ValueError) as error:
        pipe(**pictures((0,), height=32, width=40, num_inference_steps=6))
    assert "stage 0 has 20 tokens, which 3 ranks can't have equally many of; use ContextParallelConfig(" in str(error)


def test_tokens_of_stages_are_those_of_the_layouts() -> None:
    plan = [Stage(ratio, (1.0, 0.0)) for ratio in (0.0, 0.3, 1.0)]
    given, seen = torch.zeros(1, 96 + 5, 4), []
    for stage in plan:
        with pytest.raises(ValueError, match=r"has (\d+) tokens") as error:
            ranked.check_tokens(divided(make_pipeline()).transformer, (stage,), (8, 12), 1, given)
        seen.append(int(str(error.value).split(" has ")[1].split()[0]))
    assert seen == [24 + 5, 24 + 3 * refined_count(0.3, 24) + 5, 96 + 5]
    ranked.check_tokens(divided(make_pipeline(), ulysses_anything=True).transformer, tuple(plan), (8, 12), 1, given)


def test_parts_of_an_axis_are_known_by_their_shape() -> None:
    ranks = ranks_of(divided(make_pipeline()).transformer)
    assert isinstance(ranks, Ranks) and ranks.count == 3 and not ranks.uneven
    assert ranks_of(make_pipeline().transformer) is None and ranks_of(None) is None
    assert not ranks.is_own(torch.zeros(2, 4, 8), torch.zeros(2, 13, 8)), "13 do not divide"
