"""The coverage table: its page is made from its results, and a sample of it, one pipeline a denoiser class, holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.coverage.__main__ import RESULTS, read
from benchmarks.coverage.build import Unbuilt, build, pipeline_classes, recipe_of
from benchmarks.coverage.page import PAGE, counts, is_visual, page, ran
from benchmarks.coverage.shrink import divided, tiny
from benchmarks.coverage.survey import WORKS, survey
from tests import surroundings

one_thread = surroundings.one_thread

SAMPLE = (
    "AllegroPipeline", "AuraFlowPipeline", "CogVideoXPipeline", "CogView4Pipeline",
    "Kandinsky5T2VPipeline", "Krea2Pipeline", "MochiPipeline", "PixArtSigmaPipeline", "SkyReelsV2Pipeline",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_the_table_holds(name: str) -> None:
    row = survey(name)
    assert (row.runs, row.tier1, row.linear, row.tier2) == (WORKS, WORKS, WORKS, WORKS)
    assert row.written or "kept is" in row.finding


def test_a_model_without_a_stack_of_blocks_has_forecasts_alone() -> None:
    row = survey("StableDiffusionPipeline")
    assert (row.runs, row.tier1) == (WORKS, WORKS) and "StableDiffusionPipeline" in row.tier2


def test_the_page_is_made_from_the_results() -> None:
    rows = read(RESULTS)
    assert PAGE.read_text() == page(rows) and counts(rows) in PAGE.read_text()
    assert {row.pipeline for row in rows} <= set(pipeline_classes())


def test_the_goals_of_breadth() -> None:
    running = [row for row in read(RESULTS) if ran(row)]
    visual = [row for row in running if is_visual(row)]
    assert sum(row.tier1 == WORKS for row in visual) >= 0.9 * len(visual)
    assert len({row.denoiser for row in running if row.tier2 == WORKS}) >= 25
    inexact = [row for row in visual if row.tier1 == WORKS != row.linear]
    assert {row.scheduler for row in inexact} <= {"CogVideoXDPMScheduler"}, "which draws fresh noise"


def test_sizes_are_told_by_names() -> None:
    assert tiny("joint_attention_dim", 4096) == 32 and tiny("num_layers", 19) == 2 and tiny("in_channels", 64) == 64
    assert tiny("axes_dims_rope", (16, 56, 56)) == divided(16, (16, 56, 56)) == (2, 6, 8)
    assert tiny("block_out_channels", [128, 256]) == [32, 32] and tiny("image_dim", None) is None


def test_what_cannot_be_built_names_the_component() -> None:
    with pytest.raises(Unbuilt, match=r"vae: AutoencoderKL: TypeError: .*unheard_of"):
        build("FluxPipeline", vae={"unheard_of": 1})
    assert recipe_of("FluxFillPipeline")["transformer"]["in_channels"] == 384


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    """To build and to draw leaves the global generator where it was."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_given_video_enters_where_stock_enters() -> None:
    """Wan's video-to-video cuts its schedule without telling the scheduler."""
    row = survey("WanVideoToVideoPipeline")
    assert (row.runs, row.tier1, row.tier2) == (WORKS, WORKS, WORKS)
